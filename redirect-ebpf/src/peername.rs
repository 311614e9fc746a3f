//! Keeps up appearances: `getpeername()` tells the application the address that it dialled.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{Endpoint, role};

use crate::connect::PROCEED;
use crate::ctx::SockAddr;

/// `getpeername()` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn peername4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(dst) = dialled(&sock) {
        sock.set_address4(&dst);
    }
    PROCEED
}

/// `getpeername()` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn peername6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(dst) = dialled(&sock) {
        sock.set_address6(&dst);
    }
    PROCEED
}

#[inline(always)]
fn dialled(sock: &SockAddr) -> Option<Endpoint> {
    let record = sock.record()?;
    matches!(record.role, role::CLIENT | role::DNS_CLIENT).then_some(record.dst)
}
