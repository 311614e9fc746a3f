//! 1 of 3: an application calls `connect()`. Decide; remember the true destination in the socket's record; rewrite to
//! the sidecar. The handshake then continues in `sockops`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Flow, Ip, LISTENER_SLOTS, ListenerKey, Origin, Outbound, PodConfig, Protocol, Target,
    decide, flags, in_spread4, role, spread,
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
            // A second connect() on this socket may follow a redirected one: "no record" means "not redirected".
            if let Some(record) = sock.record() {
                record.role = role::NONE;
            }
            count(call.facts.cookie, direct_event(rule));
            Step::Leave
        }
        Outbound::Redirect(target, _) => redirect(sock, call, target),
    }
}

#[inline(always)]
fn redirect(sock: &SockAddr, call: &Call, target: Target) -> Step {
    let (cookie, pod, dst) = (call.facts.cookie, call.facts.pod, &call.flow.dst);
    let (role, event) = match target {
        Target::Outbound => (role::CLIENT, Event::OutboundRedirected),
        Target::Inbound => (role::CLIENT, Event::SelfCallRedirected),
        Target::Dns => (role::DNS_CLIENT, Event::DnsRedirected),
    };
    if !sock.set_record(Origin { dst: *dst, role }) {
        count(cookie, Event::NoStorage);
        return Step::Refuse;
    }
    count(cookie, event);
    let proxy = match target {
        Target::Outbound => listener(cookie, pod, dst, pod.outbound_port),
        Target::Inbound => listener(cookie, pod, dst, pod.inbound_port),
        Target::Dns => dns_proxy(pod, dst),
    };
    if proxy.ip.is_loopback() && call.flow.src.is_unspecified() && !in_spread4(&proxy.ip) {
        // Dialling localhost would make localhost the client's address; it is the pod's.
        let source = pod.source(dst.ip.is_v4());
        if !source.is_unspecified() {
            sock.bind(&source);
        }
    }
    Step::Rewrite(proxy)
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
            if pod.source(v4).is_unspecified() { localhost(v4) } else { spread(dst) }
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
