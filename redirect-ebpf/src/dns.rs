//! DNS over unconnected UDP: every datagram names its server, and the answer's source must be that server
//! again. (A connected UDP socket goes through `connect` and `peername`; here only the source of its answers
//! is put back.)

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{Endpoint, Event, Outbound, decide, role};

use crate::call::{Call, PROCEED, REFUSE, dns_proxy};
use crate::ctx::SockAddr;
use crate::maps;
use crate::stats::count;
use crate::trace;

/// A datagram with an IPv4 destination (also from a dual-stack IPv6 socket).
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some(call) = Call::new(&sock, sock.address4(), sock.bound4()) else { return PROCEED };
    let decision = decide(&call.flow, &call.facts);
    let Outbound::Redirect(..) = decision else { return PROCEED };
    if !note_question(&sock, &call) {
        return REFUSE;
    }
    let source = call.source();
    if !source.is_unspecified() {
        sock.choose_source4(&source);
    }
    sock.set_address4(&dns_proxy(call.facts.pod, &call.flow.dst));
    trace::outbound(&call, decision);
    PROCEED
}

/// A datagram with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some(call) = Call::new(&sock, sock.address6(), sock.bound6()) else { return PROCEED };
    let decision = decide(&call.flow, &call.facts);
    let Outbound::Redirect(..) = decision else { return PROCEED };
    if !note_question(&sock, &call) {
        return REFUSE;
    }
    let source = call.source();
    if !source.is_unspecified() {
        sock.choose_source6(&source);
    }
    sock.set_address6(&dns_proxy(call.facts.pod, &call.flow.dst));
    trace::outbound(&call, decision);
    PROCEED
}

/// Remembers which server the application asked; false when the kernel has no memory for it.
#[inline(always)]
fn note_question(sock: &SockAddr, call: &Call) -> bool {
    let Some(pending) = sock.make_dns_pending() else {
        count(call.facts.cookie, Event::NoStorage);
        return false;
    };
    pending.asked(call.flow.dst);
    count(call.facts.cookie, Event::DnsRedirected);
    true
}

/// An answer on an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(server) = asked_server(&sock, &sock.address4()) {
        sock.set_address4(&server);
    }
    PROCEED
}

/// An answer on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    if let Some(server) = asked_server(&sock, &sock.address6()) {
        sock.set_address6(&server);
    }
    PROCEED
}

/// The server from which the application expects this answer of the DNS proxy.
#[inline(always)]
fn asked_server(sock: &SockAddr, from: &Endpoint) -> Option<Endpoint> {
    let pod = maps::pod(sock.cookie())?;
    if from.port != pod.dns_port || !from.ip.is_loopback() {
        return None;
    }
    if let Some(origin) = sock.origin()
        && origin.role == role::DNS_CLIENT
    {
        return Some(origin.dst);
    }
    sock.dns_pending()?.answered()
}
