//! The detour of connections whose address cannot say where they were meant to go (`connect` has the five
//! cases): in the handshake over loopback the client's side puts the true destination where the accepted
//! socket's side takes it. A connection with a slot has nothing to do here. The sidecar's listeners are
//! learned here too.
//!
//! Order (seen on Linux 6.18, with SYN cookies too): the client's ACTIVE_ESTABLISHED runs when the SYN-ACK
//! arrives, before the ACK is sent that brings about the server's PASSIVE_ESTABLISHED.

use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_LISTEN,
};
use aya_ebpf::macros::sock_ops as hook;
use aya_ebpf::programs::SockOpsContext;
use redirect_common::{
    Event, HandoffKey, LISTENER_PLACES, ListenerKey, Origin, Own, is_handoff_address, role,
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
    if maps::handoff_put(&HandoffKey::of_dialling(cookie, sock.own(), sock.peer()), &origin.dst) {
        sock.watch_state();
    } else {
        count(cookie, Event::HandoffFull);
    }
}

/// A socket that is watched changed state: a client on the detour, or an ephemeral port's listener. (What the
/// listener accepts is watched as well; it inherits the wish.)
#[inline(always)]
fn changed(sock: &SockOps) {
    let (before, now) = sock.states();
    if before == BPF_TCP_LISTEN {
        return maps::listened(sock.cookie(), sock.own().0.port, sock.socket());
    }
    // When the client is closed, its destination will not be taken any more: the sidecar's accept queue may
    // have been full all the time.
    if now == BPF_TCP_CLOSE && sock.origin().is_some_and(|origin| origin.role == role::CLIENT) {
        maps::handoff_remove(&HandoffKey::of_dialling(sock.cookie(), sock.own(), sock.peer()));
    }
}

/// The server's side. Only localhost and the addresses behind the slots have anything to take; every other
/// address says by itself what the connection is meant for.
#[inline(always)]
fn accepted(sock: &SockOps) {
    let own = sock.own();
    if !is_handoff_address(&own.0.ip) {
        return;
    }
    let cookie = sock.cookie();
    if let Some(dst) = maps::handoff_take(&HandoffKey::of_accepted(cookie, own, sock.peer())) {
        let stored = sock.set_origin(Origin { dst, role: role::ACCEPTED });
        count(cookie, if stored { Event::HandoffTaken } else { Event::NoStorage });
    }
}

/// A socket starts to listen. One of the sidecar's is registered, one on an ephemeral port is noted.
#[inline(always)]
fn listening(sock: &SockOps) {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return };
    let Own(own) = sock.own();
    let (listener, ephemeral) = (pod.is_listener(own.port), pod.is_ephemeral(own.port));
    let number = pod.listener_number(own.port, sock.family());
    if !maps::still(pod, cookie) {
        return;
    }
    if listener {
        register(sock, cookie, own.port, number);
    } else if ephemeral && maps::listening(cookie, own.port, sock.socket()) {
        sock.watch_state();
    }
}

/// Registers a listener of the sidecar, when all places are taken in that whose turn it is.
#[inline(always)]
fn register(sock: &SockOps, cookie: u64, port: u32, number: u32) {
    if sock.origin().is_some_and(|origin| origin.role == role::FOREIGN) {
        return count(cookie, Event::ListenerForeign);
    }
    let family = sock.family();
    for place in 0..LISTENER_PLACES {
        if sock.register(ListenerKey::new(cookie, port, family, place), BPF_NOEXIST.into()) {
            return count(cookie, Event::ListenerAdded);
        }
    }
    let place = maps::next_place(cookie, number);
    let replaced = sock.register(ListenerKey::new(cookie, port, family, place), 0);
    count(cookie, if replaced { Event::ListenerAdded } else { Event::ListenerRejected });
}
