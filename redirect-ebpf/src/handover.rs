//! TPROXY mode: the sidecar goes on to the application with a socket that `bind` has given 127.0.0.6 or ::6,
//! and in which the client is kept. In the handshake the client is handed over to the socket that the
//! application accepts, where `peername` finds it.
//!
//! It is left in CLIENTS before the SYN is sent. So it is there for the application's side in every case,
//! with TCP Fast Open too, where that side is established before the sidecar's. A program of its own beside
//! `sock_ops`, linked in this mode only: without it every connection of a sidecar would cost a look-up.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::macros::sock_ops as hook;
use aya_ebpf::programs::SockOpsContext;
use redirect_common::{Endpoint, Event, HandoffKey, Ip, Origin, Own, Peer, role};

use crate::ctx::SockOps;
use crate::maps;
use crate::stats::count;

/// Runs at the turning points of every TCP socket of the pod.
#[hook]
pub(crate) fn handover(ctx: SockOpsContext) -> u32 {
    let sock = SockOps::new(&ctx);
    match sock.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dials(&sock),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&sock),
        BPF_SOCK_OPS_STATE_CB => changed(&sock),
        _ => {}
    }
    1
}

/// The sidecar's side: the client is kept in its socket. A client whose port the sidecar did not name has
/// that of the sidecar's socket.
#[inline(always)]
fn dials(sock: &SockOps) {
    let Some(origin) = sock.origin() else { return };
    if origin.role != role::PRETENDER {
        return;
    }
    let (cookie, own) = (sock.cookie(), sock.own());
    // What the kernel did not bind there, because another address or nothing came of the call, pretends
    // nothing.
    if !own.0.ip.same(if origin.dst.ip.is_v4() { &Ip::PASSTHROUGH4 } else { &Ip::PASSTHROUGH6 }) {
        return;
    }
    let named = origin.dst.port != 0;
    let client = Endpoint { ip: origin.dst.ip, port: if named { origin.dst.port } else { own.0.port } };
    if maps::client_put(&HandoffKey::of_dialling(cookie, own, sock.peer()), &client) {
        sock.watch_state();
    } else {
        count(cookie, Event::HandoffFull);
    }
}

/// When the sidecar's socket is closed, its client will not be taken any more: the application may have
/// refused it.
#[inline(always)]
fn changed(sock: &SockOps) {
    let (_, now) = sock.states();
    if now == BPF_TCP_CLOSE && sock.origin().is_some_and(|origin| origin.role == role::PRETENDER) {
        maps::client_remove(&HandoffKey::of_dialling(sock.cookie(), sock.own(), sock.peer()));
    }
}

/// The application's side. Without a client it sees 127.0.0.6, as in REDIRECT mode.
#[inline(always)]
fn accepted(sock: &SockOps) {
    let Peer(peer) = sock.peer();
    if !peer.ip.same(&Ip::PASSTHROUGH4) && !peer.ip.same(&Ip::PASSTHROUGH6) {
        return;
    }
    let (cookie, own): (u64, Own) = (sock.cookie(), sock.own());
    if let Some(dst) = maps::client_take(&HandoffKey::of_accepted(cookie, own, Peer(peer))) {
        let stored = sock.set_origin(Origin { dst, role: role::SHOWN });
        count(cookie, if stored { Event::HandoffTaken } else { Event::NoStorage });
    }
}
