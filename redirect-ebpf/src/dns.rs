//! DNS over UDP: a question goes to the address that stands for its server, and the answer's source is turned
//! back. The proxy's own answers are looked at too, because one that answers from another address needs help.
//!
//! (A connected UDP socket asks through `connect` and `peername`; here the source of its answers is put
//! back.)

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::dns::{DnsClient, slot_key};
use redirect_common::{Endpoint, Event, Ip, Origin, PodConfig, dns, role};

use crate::call::{Call, Decision, ECONNREFUSED, ENETUNREACH, PROCEED, REFUSE, Request, decide_call};
use crate::ctx::SockAddr;
use crate::maps::{self, Claim};
use crate::stats::count;
use crate::trace;

/// A datagram with an IPv4 destination (also from a dual-stack IPv6 socket).
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some((request, pod)) = Request::new(&sock, sock.address4(), sock.bound4()) else { return PROCEED };
    let source = || sock.source4();
    datagram(&sock, &request, pod, source, |from| sock.set_source4(from), |to| sock.set_address4(to))
}

/// A datagram with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some((request, pod)) = Request::new(&sock, sock.address6(), sock.bound6()) else { return PROCEED };
    let source = || sock.source6();
    datagram(&sock, &request, pod, source, |from| sock.set_source6(from), |to| sock.set_address6(to))
}

/// The way of both hooks: an answer of the DNS proxy's, or a question, which is for it or not.
#[inline(always)]
fn datagram(
    sock: &SockAddr,
    request: &Request,
    pod: &'static PodConfig,
    source: impl Fn() -> Ip,
    set_source: impl Fn(&Ip),
    set_address: impl Fn(&Endpoint),
) -> i32 {
    let call = Call::new(request, pod);
    if answers(sock, &call) {
        if let Some(at) = source_of_answer(&call, &source()) {
            set_source(&at);
        }
        return PROCEED;
    }
    let decision = decide_call(request, pod);
    if Decision(decision).target().is_none() {
        leave_alone(sock, &call, Decision(decision));
        return PROCEED;
    }
    if call.unreachable() {
        count(request.cookie, Event::Unreachable);
        return refuse(sock, ENETUNREACH);
    }
    let Some(at) = asked_at(&call) else {
        count(request.cookie, Event::DnsRefused);
        return refuse(sock, ECONNREFUSED);
    };
    count(request.cookie, Event::DnsRedirected);
    if source().is_unspecified() && call.has_own_source() {
        set_source(&call.flow.dst.ip);
    }
    set_address(&at);
    trace::trace_call(request, decision);
    PROCEED
}

#[inline(always)]
fn refuse(sock: &SockAddr, errno: i32) -> i32 {
    sock.fail_with(errno);
    REFUSE
}

/// The guard cannot see by which group a question is let pass: it is told by the socket's origin, unless that
/// is in use.
#[inline(always)]
fn leave_alone(sock: &SockAddr, call: &Call<'_>, decision: Decision) {
    let free = sock.origin().is_none_or(|origin| origin.role == role::NONE);
    if free && decision.marked() {
        let _ = sock.set_origin(Origin { dst: call.flow.dst, role: role::PASSED });
    }
}

/// Where a captured question goes: the proxy at the address that stands for the server. `None`: no address is
/// left for it.
#[inline(always)]
pub(crate) fn asked_at(call: &Call<'_>) -> Option<Endpoint> {
    let mut ip = Ip::NONE;
    let found = server_call(call.request, &mut ip);
    (found != 0).then_some(Endpoint { ip, port: call.facts.pod.dns_port })
}

/// Has an address stand for the server and puts it into `at`; 0 when none is left.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn server_call(request: *const Request, at: *mut Ip) -> u64 {
    // SAFETY: the caller passes references.
    let (Some(request), Some(at)) = (unsafe { request.as_ref() }, unsafe { at.as_mut() }) else { return 0 };
    let server = &request.flow.dst;
    for attempt in 0..dns::ATTEMPTS {
        let ip = dns::candidate(server, attempt);
        if let Some(slot) = slot_key(request.cookie, &ip)
            && matches!(maps::claim_slot(&slot, server), Claim::Done)
        {
            *at = ip;
            return 1;
        }
    }
    0
}

/// Whether this datagram is the DNS proxy's answer to somebody.
#[inline(always)]
fn answers(sock: &SockAddr, call: &Call<'_>) -> bool {
    let (pod, caller) = (call.facts.pod, &call.flow.caller);
    sock.own_port() == pod.dns_port && pod.is_proxy(caller)
}

/// The address from which an answer must come, where the proxy does not say one itself.
#[inline(always)]
fn source_of_answer(call: &Call<'_>, chosen: &Ip) -> Option<Ip> {
    let cookie = call.facts.cookie;
    if !chosen.is_unspecified() {
        if slot_key(cookie, chosen).is_some() {
            maps::note_dns_proxy(cookie, dns::proxy::ANSWERS_WHERE_ASKED);
        }
        return None;
    }
    maps::note_dns_proxy(cookie, dns::proxy::ANSWERS_ELSEWHERE);
    count(cookie, Event::DnsAnsweredElsewhere);
    maps::dns_asked(&DnsClient::new(cookie, call.flow.dst)).map(dns::DnsAsked::answered)
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

/// The server for which the address of a datagram's sender stands; `None` when it is not the DNS proxy at a
/// slot.
#[inline(always)]
pub(crate) fn asked_server(sock: &SockAddr, from: &Endpoint) -> Option<Endpoint> {
    let slot = slot_key(sock.cookie(), &from.ip)?;
    if from.port != maps::pod(slot.cookie)?.dns_port {
        return None;
    }
    maps::destination(&slot)
}
