//! A socket of the pod calls `bind()`. Four things are seen to.
//!
//! Only the proxy's own listener gets the pod's traffic: no other user may bind to one of the proxy's ports.
//! (A mark would not do: root of the pod may join a group of SO_REUSEPORT sockets, or listen at one address
//! of the private prefix.) What the sidecar has accepted on a port of the application must not keep the
//! application from binding that port: the kernel compares addresses of sockets that do not listen only
//! where SO_REUSEADDR is off. And the DNS proxy, which binds to localhost, is given the wildcard address, so
//! that it can be asked at the addresses that stand for servers; `inbound` keeps that socket closed to the
//! outside.
//!
//! In TPROXY mode the proxy binds a socket on its way to the application to the address of its client. It
//! gets 127.0.0.6 or ::6, as in REDIRECT mode, and the client is kept in the socket for `handover`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Family, Inbound, Ip, Origin, PodConfig, Protocol, decide_inbound, dns, flags, in_prefix,
    role,
};

use crate::call::{PROCEED, REFUSE};
use crate::ctx::SockAddr;
use crate::facts::{NO_INTERFACE, PacketFacts, is_own};
use crate::maps;
use crate::stats::count;

/// `asm-generic/errno.h`
const EADDRINUSE: i32 = 98;

/// `bind()` on an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    bind(&sock, &sock.address4(), |to| sock.set_address4(to))
}

/// `bind()` on an IPv6 socket, IPv4-mapped addresses included.
#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    bind(&sock, &sock.address6(), |to| sock.set_address6(to))
}

/// The way of both hooks: what they return, and which address becomes of the one that was asked for.
#[inline(always)]
fn bind(sock: &SockAddr, asked: &Endpoint, rewrite: impl Fn(&Endpoint)) -> i32 {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return PROCEED };
    let v4 = asked.ip.is_v4();
    if asked.port != 0 && is_the_proxys(sock, pod, asked.port) && maps::still(pod, cookie) {
        count(cookie, Event::ListenerForeign);
        sock.fail_with(EADDRINUSE);
        return REFUSE;
    }
    match sock.protocol() {
        Some(Protocol::Tcp) if pretends(sock, cookie, pod, asked) => {
            let ip = if v4 { Ip::PASSTHROUGH4 } else { Ip::PASSTHROUGH6 };
            rewrite(&Endpoint { ip, port: 0 });
            PROCEED
        }
        Some(Protocol::Tcp) if asked.port != 0 => {
            listens(sock, cookie, pod, asked.port);
            PROCEED
        }
        Some(Protocol::Udp) if opens_dns(sock, cookie, pod, asked) => {
            rewrite(&Endpoint { ip: if v4 { Ip::v4(0) } else { Ip::NONE }, port: asked.port });
            PROCEED
        }
        _ => PROCEED,
    }
}

/// Whether a port is the proxy's, and the caller is not: over TCP those of Envoy, and over both that of the
/// DNS proxy.
#[inline(always)]
fn is_the_proxys(sock: &SockAddr, pod: &PodConfig, port: u32) -> bool {
    let proxys = match sock.protocol() {
        Some(Protocol::Tcp) => pod.is_listener(port),
        Some(Protocol::Udp) => pod.flags & flags::DNS != 0 && port == pod.dns_port,
        None => false,
    };
    proxys && !pod.is_proxy(&sock.caller())
}

/// Whether the proxy binds a socket that is to be transparent to the address of a client; then the client is
/// kept in it. What it may not pretend is left to the kernel: an address of the pod, loopback, multicast.
///
/// The port is left open even where the proxy names the client's (`bind_port`): two clients may have the same
/// one, and at 127.0.0.6 they would meet.
#[inline(always)]
fn pretends(sock: &SockAddr, cookie: u64, pod: &'static PodConfig, asked: &Endpoint) -> bool {
    if pod.flags & flags::TPROXY == 0 {
        return false;
    }
    let Some(origin) = sock.origin() else { return false };
    if !role::is_transparent(origin.role) {
        return false;
    }
    let family = asked.ip.family();
    let may = pod.is_proxy(&sock.caller())
        && !asked.ip.is_unspecified()
        && !asked.ip.is_loopback_of(family)
        && !asked.ip.is_multicast()
        && !in_prefix(&asked.ip)
        && !is_own(pod, cookie, &asked.ip, family)
        && maps::still(pod, cookie);
    // Where the kernel is going to refuse the call, what was kept stays.
    if sock.is_unbound() {
        *origin = Origin { dst: *asked, role: if may { role::PRETENDER } else { role::TRANSPARENT } };
    }
    may
}

/// A TCP socket, which may be going to listen.
#[inline(always)]
fn listens(sock: &SockAddr, cookie: u64, pod: &'static PodConfig, port: u32) {
    let facts = PacketFacts { cookie, pod, interface: NO_INTERFACE };
    if let Inbound::Redirect(_) = decide_inbound(port, &facts) {
        sock.reuse_address();
    }
}

/// Whether this is the DNS proxy's socket, and asks for localhost; then it may share its port. It is noted
/// either way, as questions are for the proxy only.
///
/// Go opens `[::1]:15053` without IPV6_V6ONLY. Made a wildcard, it would collide with the IPv4 one, so both
/// get SO_REUSEPORT: the kernel then refuses the port only to other users.
#[inline(always)]
fn opens_dns(sock: &SockAddr, cookie: u64, pod: &PodConfig, asked: &Endpoint) -> bool {
    if pod.flags & flags::DNS == 0 || asked.port != pod.dns_port {
        return false;
    }
    if !pod.is_proxy(&sock.caller()) {
        return false;
    }
    if asked.ip.is_unspecified() {
        // It is there for the outside as well, also where the programs had opened one before.
        let (wildcard, closed) = match asked.ip.family() {
            Family::V4 => (dns::proxy::WILDCARD4, dns::proxy::OPENED4),
            Family::V6 => (dns::proxy::WILDCARD4 | dns::proxy::WILDCARD6, dns::proxy::OPENED6),
        };
        if !maps::dns_proxy_opened(cookie, pod.dns_port, wildcard, closed) {
            count(cookie, Event::DnsProxyRejected);
        }
    }
    if !asked.ip.same(&asked.ip.family().localhost()) {
        return false;
    }
    let opened = match asked.ip.family() {
        Family::V4 => dns::proxy::OPENED4,
        // Without IPV6_V6ONLY it takes IPv4 as well, where the proxy has no other socket for that.
        Family::V6 => dns::proxy::OPENED4 | dns::proxy::OPENED6,
    };
    if !sock.share_port() || !maps::dns_proxy_opened(cookie, pod.dns_port, opened, 0) {
        count(cookie, Event::DnsProxyRejected);
        return false;
    }
    true
}
