//! Hides the rewriting from `getpeername()`: it tells the application the address that it dialled, and the
//! sidecar (which gets it from `accept()` as well) the client's. In TPROXY mode it tells the application its
//! client: `accept()`, SO_PEERNAME and io_uring come by here as well.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::dns::slot_key;
use redirect_common::{Endpoint, role};

use crate::call::PROCEED;
use crate::ctx::SockAddr;
use crate::facts::is_own;
use crate::maps;

/// `getpeername()` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn peername4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(peer) = shown(&sock, &sock.address4()) {
        sock.set_address4(&peer);
    }
    PROCEED
}

/// `getpeername()` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn peername6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(peer) = shown(&sock, &sock.address6()) {
        sock.set_address6(&peer);
    }
    PROCEED
}

/// What the other end is to be called. To the application: what it dialled, which is what the peer's address
/// stands for or what is kept in its socket; or its client, which `handover` left there. To the sidecar,
/// after the detour: the client's own address.
#[inline(always)]
fn shown(sock: &SockAddr, peer: &Endpoint) -> Option<Endpoint> {
    let cookie = sock.cookie();
    if let Some(slot) = slot_key(cookie, &peer.ip) {
        // Other ports of the prefix are the application's own business.
        let pod = maps::pod(cookie)?;
        return if pod.is_listener(peer.port) { maps::destination(&slot) } else { None };
    }
    let origin = sock.origin()?;
    match origin.role {
        role::CLIENT | role::SHOWN => Some(origin.dst),
        role::ACCEPTED if peer.ip.is_loopback() => client(cookie, &origin.dst, peer),
        _ => None,
    }
}

/// The client of a connection to a sidecar that listens on localhost only. A socket that had a port already
/// could not be bound to the pod's address, so the kernel chose localhost; without us it would have chosen by
/// the destination.
#[inline(always)]
fn client(cookie: u64, dst: &Endpoint, peer: &Endpoint) -> Option<Endpoint> {
    if dst.ip.is_loopback() {
        return None;
    }
    let pod = maps::pod(cookie)?;
    let family = dst.ip.family();
    let ip = if is_own(pod, cookie, &dst.ip, family) { dst.ip } else { pod.source(family) };
    (!ip.is_unspecified() && maps::still(pod, cookie)).then_some(Endpoint { ip, port: peer.port })
}
