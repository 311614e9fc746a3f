//! The DNS proxy binds to localhost. It is given the wildcard address instead, so that it can be asked at the
//! addresses that stand for servers; `inbound` keeps that socket closed to the outside.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{Endpoint, Event, Family, Ip, Protocol, dns, flags};

use crate::call::PROCEED;
use crate::ctx::SockAddr;
use crate::maps;
use crate::stats::count;

/// `bind()` on an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let asked = sock.address4();
    if opens_dns(&sock, &asked) {
        sock.set_address4(&Endpoint { ip: Ip::v4(0), port: asked.port });
    }
    PROCEED
}

/// `bind()` on an IPv6 socket, IPv4-mapped addresses included.
#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let asked = sock.address6();
    if opens_dns(&sock, &asked) {
        let ip = if asked.ip.is_v4() { Ip::v4(0) } else { Ip::NONE };
        sock.set_address6(&Endpoint { ip, port: asked.port });
    }
    PROCEED
}

/// Whether this is the DNS proxy's socket; then it is noted, and may share its port.
///
/// Go opens `[::1]:15053` without IPV6_V6ONLY. Made a wildcard, it would collide with the IPv4 one, so both
/// get SO_REUSEPORT: the kernel then refuses the port only to other users.
#[inline(always)]
fn opens_dns(sock: &SockAddr, asked: &Endpoint) -> bool {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return false };
    if pod.flags & flags::DNS == 0 || asked.port != pod.dns_port {
        return false;
    }
    if !matches!(sock.protocol(), Some(Protocol::Udp)) || !asked.ip.same(&asked.ip.family().localhost()) {
        return false;
    }
    let caller = sock.caller();
    if caller.uid != pod.proxy_uid && caller.gid != pod.proxy_gid {
        return false;
    }
    let opened = match asked.ip.family() {
        Family::V4 => dns::proxy::OPENED4,
        Family::V6 => dns::proxy::OPENED6,
    };
    if !sock.share_port() || !maps::dns_proxy_opened(cookie, pod.dns_port, opened) {
        count(cookie, Event::DnsProxyRejected);
        return false;
    }
    true
}
