//! An application calls `connect()`: step 1 of its way to the sidecar. Decide, and rewrite to the sidecar at
//! an address that stands for the true destination.
//!
//! * Step 2 is the kernel's own: it routes to that address by the local route that attach added
//!   (`redirect_user::pod::netns`), whose preferred source is the pod's address.
//! * Step 3 is `original_dst`: the sidecar asks its accepted socket, whose local address is the one that
//!   stands for the destination.
//!
//! **The detour** is for a connection without such an address. There are four cases: the destination's slot
//! is another destination's; the table of destinations is full; the sidecar listens on localhost only; the
//! application dialled localhost itself. Then the destination is kept in the client's socket (ORIGIN), and
//! `sock_ops` hands it over in the handshake.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Family, Ip, LISTENER_PLACES, ListenerKey, Origin, Outbound, Protocol, Rule, SlotKey,
    Target, decide, role, shared_address, slot_address, slot_of,
};

use crate::call::{Call, PROCEED, REFUSE};
use crate::ctx::{SockAddr, listener_address};
use crate::dns::asked_at;
use crate::maps;
use crate::stats::{count, direct_event};
use crate::trace;

/// `connect()` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some(call) = Call::new(&sock, sock.address4(), sock.bound4()) else { return PROCEED };
    let decision = decide(&call.flow, &call.facts);
    let code = match carry_out(&sock, &call, decision) {
        Step::Leave => PROCEED,
        Step::Rewrite(proxy) => {
            sock.set_address4(&proxy);
            PROCEED
        }
        Step::Refuse => refuse(&sock),
    };
    trace::outbound(&call, decision);
    code
}

/// `connect()` on an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some(call) = Call::new(&sock, sock.address6(), sock.bound6()) else { return PROCEED };
    let decision = decide(&call.flow, &call.facts);
    let code = match carry_out(&sock, &call, decision) {
        Step::Leave => PROCEED,
        Step::Rewrite(proxy) => {
            sock.set_address6(&proxy);
            PROCEED
        }
        Step::Refuse => refuse(&sock),
    };
    trace::outbound(&call, decision);
    code
}

#[inline(always)]
fn refuse(sock: &SockAddr) -> i32 {
    sock.fail_with_refused();
    REFUSE
}

/// What the two hooks do with the call.
enum Step {
    Leave,
    Rewrite(Endpoint),
    Refuse,
}

#[inline(always)]
fn carry_out(sock: &SockAddr, call: &Call, decision: Outbound) -> Step {
    match decision {
        Outbound::Direct(rule) => {
            leave_alone(sock, call, rule);
            count(call.facts.cookie, direct_event(rule));
            Step::Leave
        }
        Outbound::Redirect(target, _) => redirect(sock, call, target),
    }
}

/// The guard sees the packet, not the caller, and its address perhaps after a service load balancer has
/// chosen another: what it could not decide again by itself is marked. No memory for the mark: the guard
/// refuses the connection.
#[inline(always)]
fn leave_alone(sock: &SockAddr, call: &Call, rule: Rule) {
    if !call.marked_for_guard(rule) {
        forget_origin(sock);
    } else if !sock.set_origin(Origin { dst: call.flow.dst, role: role::PASSED }) {
        count(call.facts.cookie, Event::NoStorage);
    }
}

/// A second connect() on this socket may follow a redirected one: "no origin" means "not redirected".
#[inline(always)]
fn forget_origin(sock: &SockAddr) {
    if let Some(origin) = sock.origin() {
        origin.role = role::NONE;
    }
}

#[inline(always)]
fn redirect(sock: &SockAddr, call: &Call, target: Target) -> Step {
    let pod = call.facts.pod;
    match target {
        Target::Outbound => {
            count(call.facts.cookie, Event::OutboundRedirected);
            to_listener(sock, call, pod.outbound_port)
        }
        Target::Inbound => {
            count(call.facts.cookie, Event::SelfCallRedirected);
            to_listener(sock, call, pod.inbound_port)
        }
        Target::Dns => match call.flow.protocol {
            Protocol::Tcp => {
                count(call.facts.cookie, Event::DnsRedirected);
                to_listener(sock, call, pod.dns_port)
            }
            Protocol::Udp => asked_at(call).map_or(Step::Refuse, Step::Rewrite),
        },
    }
}

/// Dials one of the sidecar's listeners in the pod's private prefix, which keeps the pod's address as the
/// client's, and at an address that stands for the destination, if there is a slot for it. (`inbound` gives
/// the connection to a listener on localhost.) A destination on localhost has localhost for its client, so
/// there the very address of the listener is dialled.
///
/// Where it does not listen at all the kernel refuses the connection, which is what the client must see.
#[inline(always)]
fn to_listener(sock: &SockAddr, call: &Call, port: u32) -> Step {
    let (cookie, pod, dst) = (call.facts.cookie, call.facts.pod, &call.flow.dst);
    let family = dst.ip.family();
    let bound = bound_to(cookie, port, family);
    if bound.is_none() {
        count(cookie, Event::NoListener);
    }
    if dst.ip.is_loopback() || pod.source(family).is_unspecified() {
        let ip = match bound {
            Some(ip) if !ip.is_unspecified() => ip,
            _ => family.localhost(),
        };
        return by_detour(sock, call, role::CLIENT, Endpoint { ip, port });
    }
    bind_source(sock, call);
    let slot = slot_of(dst);
    if maps::claim_slot(&SlotKey { cookie, slot, family: family.number() }, dst) {
        forget_origin(sock);
        return Step::Rewrite(Endpoint { ip: slot_address(slot, family), port });
    }
    by_detour(sock, call, role::CLIENT, Endpoint { ip: shared_address(dst), port })
}

/// Rewrites to `proxy` and keeps the true destination in the socket.
#[inline(always)]
fn by_detour(sock: &SockAddr, call: &Call, role: u32, proxy: Endpoint) -> Step {
    if !sock.set_origin(Origin { dst: call.flow.dst, role }) {
        count(call.facts.cookie, Event::NoStorage);
        return Step::Refuse;
    }
    Step::Rewrite(proxy)
}

/// Gives the client the address that it would have had without us, where the local route's preferred source
/// is another: it dials a second address of its own pod.
#[inline(always)]
fn bind_source(sock: &SockAddr, call: &Call) {
    let dst = &call.flow.dst.ip;
    if call.has_own_source() && !dst.same(&call.facts.pod.source(dst.family())) {
        sock.bind(dst);
    }
}

/// The address of the sidecar's listener; an IPv6 listener may serve IPv4 as well.
#[inline(always)]
fn bound_to(cookie: u64, port: u32, family: Family) -> Option<Ip> {
    for place in 0..LISTENER_PLACES {
        if let Some(ip) = listener_address(&ListenerKey::new(cookie, port, family, place)) {
            return Some(ip);
        }
    }
    if let Family::V4 = family {
        for place in 0..LISTENER_PLACES {
            if let Some(ip) = listener_address(&ListenerKey::new(cookie, port, Family::V6, place)) {
                return Some(ip);
            }
        }
    }
    None
}
