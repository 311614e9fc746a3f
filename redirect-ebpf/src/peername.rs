//! Keeps up appearances: `getpeername()` tells the application the address that it dialled.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::dns::slot_key;
use redirect_common::{Endpoint, role};

use crate::call::PROCEED;
use crate::ctx::SockAddr;
use crate::maps;

/// `getpeername()` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn peername4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(dst) = dialled(&sock, &sock.address4()) {
        sock.set_address4(&dst);
    }
    PROCEED
}

/// `getpeername()` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn peername6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(dst) = dialled(&sock, &sock.address6()) {
        sock.set_address6(&dst);
    }
    PROCEED
}

/// What the application dialled: what the peer's address stands for, or what is kept in the socket.
#[inline(always)]
fn dialled(sock: &SockAddr, peer: &Endpoint) -> Option<Endpoint> {
    if let Some(slot) = slot_key(sock.cookie(), &peer.ip) {
        return maps::destination(&slot).copied();
    }
    let origin = sock.origin()?;
    (origin.role == role::CLIENT).then_some(origin.dst)
}
