//! A socket of the pod calls `bind()`. Three things are seen to.
//!
//! Only the proxy's own listener gets the pod's traffic: what another user binds to one of the proxy's ports
//! is marked. What the sidecar has accepted on a port of the application must not keep the application from
//! binding that port: the kernel compares addresses of sockets that do not listen only where SO_REUSEADDR is
//! off. And the DNS proxy, which binds to localhost, is given the wildcard address, so that it can be asked
//! at the addresses that stand for servers; `inbound` keeps that socket closed to the outside.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Family, Inbound, Ip, PodConfig, Protocol, decide_inbound, dns, flags,
};

use crate::call::{PROCEED, REFUSE};
use crate::ctx::SockAddr;
use crate::facts::PacketFacts;
use crate::maps;
use crate::stats::count;

/// No interface has this index: a `bind()` has none.
const NO_INTERFACE: u32 = 0;
/// `asm-generic/errno-base.h`
const ENOMEM: i32 = 12;

/// `bind()` on an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let asked = sock.address4();
    let (code, open) = bind(&sock, &asked);
    if open {
        sock.set_address4(&Endpoint { ip: Ip::v4(0), port: asked.port });
    }
    code
}

/// `bind()` on an IPv6 socket, IPv4-mapped addresses included.
#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let asked = sock.address6();
    let (code, open) = bind(&sock, &asked);
    if open {
        let ip = if asked.ip.is_v4() { Ip::v4(0) } else { Ip::NONE };
        sock.set_address6(&Endpoint { ip, port: asked.port });
    }
    code
}

/// What the hook returns, and whether the address becomes the wildcard.
#[inline(always)]
fn bind(sock: &SockAddr, asked: &Endpoint) -> (i32, bool) {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return (PROCEED, false) };
    match sock.protocol() {
        Some(Protocol::Tcp) if asked.port != 0 => (listens(sock, cookie, pod, asked.port), false),
        Some(Protocol::Udp) => (PROCEED, opens_dns(sock, cookie, pod, asked)),
        _ => (PROCEED, false),
    }
}

/// A TCP socket, which may be going to listen.
#[inline(always)]
fn listens(sock: &SockAddr, cookie: u64, pod: &'static PodConfig, port: u32) -> i32 {
    if pod.is_listener(port) && !pod.is_proxy(&sock.caller()) && !sock.mark_foreign() {
        count(cookie, Event::NoStorage);
        sock.fail_with(ENOMEM);
        return REFUSE;
    }
    let facts = PacketFacts { cookie, pod, interface: NO_INTERFACE };
    if let Inbound::Redirect(_) = decide_inbound(port, &facts) {
        sock.reuse_address();
    }
    PROCEED
}

/// Whether this is the DNS proxy's socket; then it is noted, and may share its port.
///
/// Go opens `[::1]:15053` without IPV6_V6ONLY. Made a wildcard, it would collide with the IPv4 one, so both
/// get SO_REUSEPORT: the kernel then refuses the port only to other users.
#[inline(always)]
fn opens_dns(sock: &SockAddr, cookie: u64, pod: &PodConfig, asked: &Endpoint) -> bool {
    if pod.flags & flags::DNS == 0 || asked.port != pod.dns_port {
        return false;
    }
    if !asked.ip.same(&asked.ip.family().localhost()) || !pod.is_proxy(&sock.caller()) {
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
