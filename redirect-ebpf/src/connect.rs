//! 1 of 3: an application calls `connect()`. Decide, and rewrite to the sidecar at an address that stands for the
//! true destination. Where there is no such address, remember the destination in the socket's record; the handshake then
//! continues in `sockops`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Facts as _, Flow, Ip, LISTENER_SLOTS, ListenerKey, Origin, Outbound, PodConfig,
    Protocol, SlotKey, Target, decide, flags, role, shared_address, slot_address, slot_of,
};

use crate::ctx::{SockAddr, listener_address};
use crate::maps::{self, PodFacts};
use crate::stats::{count, direct_event};
use crate::trace;

/// What a sock_addr hook returns: let the call go on, or refuse it.
pub(crate) const PROCEED: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

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

/// A call that has to be decided: who, where to, and the pod's policy.
pub(crate) struct Call {
    pub(crate) flow: Flow,
    pub(crate) facts: PodFacts,
}

impl Call {
    /// `None`: not a pod of ours, or nothing that is ever captured; leave it alone.
    #[inline(always)]
    pub(crate) fn new(sock: &SockAddr, dialled: Endpoint, bound: Ip) -> Option<Call> {
        let cookie = sock.cookie();
        let pod = maps::pod(cookie)?;
        let protocol = sock.protocol()?;
        if matches!(protocol, Protocol::Udp) && pod.flags & flags::DNS == 0 {
            return None;
        }
        let flow = Flow::new(protocol, dialled, bound, sock.caller());
        Some(Call { flow, facts: PodFacts { cookie, pod } })
    }
}

impl Call {
    /// The address that the client would have without us; [`Ip::NONE`] where the socket has one already, or where the kernel
    /// chooses localhost by itself. Dialling another address of the pod, the client has that very address.
    #[inline(always)]
    pub(crate) fn source(&self) -> Ip {
        let dst = &self.flow.dst.ip;
        if !self.flow.src.is_unspecified() || dst.is_loopback() {
            Ip::NONE
        } else if self.facts.own_address(dst) {
            *dst
        } else {
            self.facts.pod.source(dst.is_v4())
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
fn carry_out(sock: &SockAddr, call: &Call, decision: Outbound) -> Step {
    match decision {
        Outbound::Direct(rule) => {
            forget_record(sock);
            count(call.facts.cookie, direct_event(rule));
            Step::Leave
        }
        Outbound::Redirect(target, _) => redirect(sock, call, target),
    }
}

/// A second connect() on this socket may follow a redirected one: "no record" means "not redirected".
#[inline(always)]
fn forget_record(sock: &SockAddr) {
    if let Some(record) = sock.record() {
        record.role = role::NONE;
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
        Target::Dns => {
            count(call.facts.cookie, Event::DnsRedirected);
            bind_source(sock, call, false);
            with_record(sock, call, role::DNS_CLIENT, dns_proxy(pod, &call.flow.dst))
        }
    }
}

/// The DNS proxy listens on localhost only.
#[inline(always)]
pub(crate) fn dns_proxy(pod: &PodConfig, dst: &Endpoint) -> Endpoint {
    Endpoint { ip: localhost(dst.ip.is_v4()), port: pod.dns_port }
}

/// Dials one of the sidecar's listeners. Where it listens on the wildcard address: in the pod's private prefix, which keeps
/// the pod's address as the client's, and at an address that stands for the destination, if there is a slot for it. Else at
/// the very address it listens on.
///
/// Where it does not listen at all the kernel refuses the connection, which is what the client must see.
#[inline(always)]
fn to_listener(sock: &SockAddr, call: &Call, port: u32) -> Step {
    let (cookie, pod, dst) = (call.facts.cookie, call.facts.pod, &call.flow.dst);
    let v4 = dst.ip.is_v4();
    let bound = bound_to(cookie, port, v4);
    if bound.is_none() {
        count(cookie, Event::NoListener);
    }
    let localhost_only = matches!(bound, Some(ip) if !ip.is_unspecified());
    if localhost_only || dst.ip.is_loopback() || pod.source(v4).is_unspecified() {
        let ip = if let (true, Some(ip)) = (localhost_only, bound) { ip } else { localhost(v4) };
        bind_source(sock, call, false);
        return with_record(sock, call, role::CLIENT, Endpoint { ip, port });
    }
    bind_source(sock, call, true);
    let slot = slot_of(dst);
    if maps::claim_slot(&SlotKey { cookie, slot, family: if v4 { 4 } else { 6 } }, dst) {
        forget_record(sock);
        return Step::Rewrite(Endpoint { ip: slot_address(slot, v4), port });
    }
    with_record(sock, call, role::CLIENT, Endpoint { ip: shared_address(dst), port })
}

/// Rewrites to `proxy` and remembers the true destination in the socket.
#[inline(always)]
fn with_record(sock: &SockAddr, call: &Call, role: u32, proxy: Endpoint) -> Step {
    if !sock.set_record(Origin { dst: call.flow.dst, role }) {
        count(call.facts.cookie, Event::NoStorage);
        return Step::Refuse;
    }
    Step::Rewrite(proxy)
}

/// Gives the client the address that it would have had without us, where the kernel will not choose it by itself:
/// `routed` says that the local route's preferred source will be chosen.
#[inline(always)]
fn bind_source(sock: &SockAddr, call: &Call, routed: bool) {
    let source = call.source();
    let chosen_by_route = routed && source.same(&call.facts.pod.source(source.is_v4()));
    if !source.is_unspecified() && !chosen_by_route {
        sock.bind(&source);
    }
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
