//! 1 of 3: an application calls `connect()`. Decide; remember the true destination in the socket's record; rewrite to
//! the sidecar. The handshake then continues in `sockops`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Flow, Ip, LISTENER_SLOTS, ListenerKey, Origin, Outbound, PodConfig, Target, decide,
    flags, role, spread,
};

use crate::ctx::{SockAddr, listener_address};
use crate::maps::{self, PodFacts};
use crate::stats::{count, direct_event};
use crate::trace;

/// What a sock_addr hook returns: let the call go on, or refuse it.
pub(crate) const PROCEED: i32 = 1;
const REFUSE: i32 = 0;

/// `connect()` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let dialled = sock.address4();
    match connect(&ctx, &sock, dialled, sock.bound4()) {
        Step::Leave => PROCEED,
        Step::Rewrite(proxy) => {
            sock.set_address4(&proxy);
            PROCEED
        }
        Step::Refuse => {
            sock.fail_with_refused();
            REFUSE
        }
    }
}

/// `connect()` on an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let dialled = sock.address6();
    match connect(&ctx, &sock, dialled, sock.bound6()) {
        Step::Leave => PROCEED,
        Step::Rewrite(proxy) => {
            sock.set_address6(&proxy);
            PROCEED
        }
        Step::Refuse => {
            sock.fail_with_refused();
            REFUSE
        }
    }
}

/// What the two hooks do with the call.
enum Step {
    Leave,
    Rewrite(Endpoint),
    Refuse,
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, sock: &SockAddr, dialled: Endpoint, bound: Ip) -> Step {
    let cookie = sock.cookie();
    let Some(pod) = maps::pod(cookie) else { return Step::Leave };
    let Some(protocol) = sock.protocol() else { return Step::Leave };
    let flow = Flow::new(protocol, dialled, bound, sock.caller());
    let verdict = decide(&flow, &PodFacts { cookie, pod });
    trace::outbound(ctx, pod, cookie, &flow, verdict);
    match verdict {
        Outbound::Direct(rule) => {
            // A second connect() on this socket may follow a redirected one: "no record" means "not redirected".
            if let Some(record) = sock.record() {
                record.role = role::NONE;
            }
            count(cookie, direct_event(rule));
            Step::Leave
        }
        Outbound::Redirect(target, _) => redirect(sock, cookie, pod, &flow, target),
    }
}

#[inline(always)]
fn redirect(sock: &SockAddr, cookie: u64, pod: &PodConfig, flow: &Flow, target: Target) -> Step {
    let (role, event) = match target {
        Target::Outbound => (role::CLIENT, Event::OutboundRedirected),
        Target::Inbound => (role::CLIENT, Event::SelfCallRedirected),
        Target::Dns => (role::DNS_CLIENT, Event::DnsRedirected),
    };
    if !sock.set_record(Origin { dst: flow.dst, role }) {
        count(cookie, Event::NoStorage);
        return Step::Refuse;
    }
    count(cookie, event);
    Step::Rewrite(match target {
        Target::Outbound => listener(cookie, pod, &flow.dst, pod.outbound_port),
        Target::Inbound => listener(cookie, pod, &flow.dst, pod.inbound_port),
        Target::Dns => dns_proxy(pod, &flow.dst),
    })
}

/// The DNS proxy listens on localhost only.
#[inline(always)]
pub(crate) fn dns_proxy(pod: &PodConfig, dst: &Endpoint) -> Endpoint {
    Endpoint { ip: localhost(dst.ip.is_v4()), port: pod.dns_port }
}

/// Where to dial the sidecar's listener: in the pod's private prefix where it listens on the wildcard address, which
/// keeps the pod's address as the client's; else at the very address it listens on.
///
/// Where it does not listen at all the kernel refuses the connection, which is what the client must see.
#[inline(always)]
fn listener(cookie: u64, pod: &PodConfig, dst: &Endpoint, port: u32) -> Endpoint {
    let v4 = dst.ip.is_v4();
    let ip = match bound_to(cookie, port, v4) {
        Some(ip) if !ip.is_unspecified() => ip,
        listens => {
            if listens.is_none() {
                count(cookie, Event::NoListener);
            }
            let spreads = if v4 { flags::SPREAD4 } else { flags::SPREAD6 };
            if pod.flags & spreads != 0 { spread(dst) } else { localhost(v4) }
        }
    };
    Endpoint { ip, port }
}

/// The address of the sidecar's listener; an IPv6 listener may serve IPv4 as well.
#[inline(always)]
fn bound_to(cookie: u64, port: u32, v4: bool) -> Option<Ip> {
    for slot in 0..LISTENER_SLOTS {
        if let Some(ip) = listener_address(&ListenerKey::new(cookie, port, v4, slot)) {
            return Some(ip);
        }
    }
    if v4 {
        for slot in 0..LISTENER_SLOTS {
            if let Some(ip) = listener_address(&ListenerKey::new(cookie, port, false, slot)) {
                return Some(ip);
            }
        }
    }
    None
}

#[inline(always)]
fn localhost(v4: bool) -> Ip {
    if v4 { Ip::LOCALHOST4 } else { Ip::LOCALHOST6 }
}

