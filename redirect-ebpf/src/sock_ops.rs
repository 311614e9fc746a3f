//! The detour of connections whose address cannot say where they were meant to go (`connect` has the four
//! cases): in the handshake over loopback the client's side puts the true destination where the accepted
//! socket's side takes it. A connection with a slot has nothing to do here. The sidecar's listeners are
//! learned here too.
//!
//! Order (seen on Linux 6.18, with SYN cookies too): the client's ACTIVE_ESTABLISHED runs when the SYN-ACK
//! arrives, before the ACK is sent that brings about the server's PASSIVE_ESTABLISHED.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::macros::sock_ops as hook;
use aya_ebpf::programs::SockOpsContext;
use redirect_common::{
    Endpoint, Event, HandoffKey, LISTENER_PLACES, ListenerKey, Origin, Own, Peer, flags, is_handoff_address,
    role,
};

use crate::ctx::SockOps;
use crate::maps;
use crate::stats::count;

/// Runs at the turning points of every TCP socket of the pod.
#[hook]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    let sock = SockOps::new(&ctx);
    match sock.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&sock),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&sock),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&sock),
        BPF_SOCK_OPS_STATE_CB => changed(&sock),
        _ => {}
    }
    1
}

/// The client's side: the true destination is kept in its socket.
#[inline(always)]
fn connected(sock: &SockOps) {
    let Some(origin) = sock.origin() else { return };
    if origin.role != role::CLIENT {
        return;
    }
    let cookie = sock.cookie();
    if maps::handoff_put(&HandoffKey::of_client(cookie, sock.own(), sock.peer()), &origin.dst) {
        sock.watch_state();
    } else {
        count(cookie, Event::HandoffFull);
    }
}

/// A redirected client's socket changed state. When it is closed, no other socket will take its destination
/// any more: the sidecar's accept queue may have been full all the time.
#[inline(always)]
fn changed(sock: &SockOps) {
    if sock.new_state() == BPF_TCP_CLOSE {
        maps::handoff_remove(&HandoffKey::of_client(sock.cookie(), sock.own(), sock.peer()));
    }
}

/// The server's side. A slot's address says by itself what the connection is meant for; localhost and the
/// shared half of the prefix do not; everything else has an origin only if it was inherited from the
/// sidecar's inbound listener.
#[inline(always)]
fn accepted(sock: &SockOps) {
    let own = sock.own();
    if is_handoff_address(&own.0.ip) {
        return take(sock, own);
    }
    let Some(origin) = sock.origin() else { return };
    if origin.role == role::INBOUND_LISTENER {
        // Steered by `inbound`, which rewrites nothing: the local address is the original destination.
        // Dialled from inside, the sidecar's port was meant: not redirected, the kernel's own answer stands.
        let steered = !within_the_pod(sock.peer(), own);
        *origin = Origin { dst: own.0, role: if steered { role::ACCEPTED } else { role::NONE } };
    }
}

/// Takes the destination that the client's side left.
#[inline(always)]
fn take(sock: &SockOps, own: Own) {
    let cookie = sock.cookie();
    if let Some(dst) = maps::handoff_take(&HandoffKey::of_sidecar(cookie, own, sock.peer())) {
        let stored = sock.set_origin(Origin { dst, role: role::ACCEPTED });
        count(cookie, if stored { Event::HandoffTaken } else { Event::NoStorage });
        return;
    }
    if let Some(origin) = sock.origin() {
        origin.role = role::NONE;
    }
    let port = own.0.port;
    if maps::pod(cookie).is_some_and(|pod| port == pod.outbound_port || port == pod.inbound_port) {
        // Somebody in the pod dialled the sidecar's port itself, or the client used TCP Fast Open and its
        // side comes later.
        count(cookie, Event::HandoffMissing);
    }
}

/// Whether both ends are in the pod.
#[inline(always)]
fn within_the_pod(peer: Peer, own: Own) -> bool {
    own.0.ip.is_loopback() || peer.0.ip.same(&own.0.ip)
}

/// A socket starts to listen: if it is one of the sidecar's, register it.
#[inline(always)]
fn listening(sock: &SockOps) {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return };
    let Own(local) = sock.own();
    let dns = pod.flags & flags::DNS != 0 && local.port == pod.dns_port;
    if local.port != pod.outbound_port && local.port != pod.inbound_port && !dns {
        return;
    }
    // Only connections that `inbound` steers have nothing else by which to be known.
    let inbound = local.port == pod.inbound_port;
    if inbound && !sock.set_origin(Origin { dst: Endpoint::NONE, role: role::INBOUND_LISTENER }) {
        count(cookie, Event::ListenerRejected);
        return;
    }
    for place in 0..LISTENER_PLACES {
        if sock.register(ListenerKey::new(cookie, local.port, sock.family(), place)) {
            count(cookie, Event::ListenerAdded);
            return;
        }
    }
    count(cookie, Event::ListenerRejected);
}
