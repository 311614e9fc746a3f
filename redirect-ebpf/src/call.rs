//! What `connect` and `dns` have in common: a call of the application, with everything that its decision
//! depends on.

use redirect_common::decide::DNS_PORT;
use redirect_common::trace::verdict;
use redirect_common::{
    Endpoint, Facts as _, Flow, Ip, Outbound, PodConfig, Protocol, Rule, Target, decide, flags, in_prefix,
    role,
};

use crate::ctx::SockAddr;
use crate::facts::PodFacts;
use crate::maps;
use crate::stats::direct_event;

/// What a sock_addr hook returns: let the call go on, or refuse it.
pub(crate) const PROCEED: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

/// Errors of `connect()` and `sendmsg()`, `asm-generic/errno.h`.
pub(crate) const ENETUNREACH: i32 = 101;
pub(crate) const ECONNREFUSED: i32 = 111;

/// What a pod asks for, to connect or to send: plain words without padding, which functions with global
/// linkage can take.
#[repr(C)]
pub(crate) struct Request {
    pub(crate) cookie: u64,
    pub(crate) flow: Flow,
    zero: u32,
}

impl Request {
    /// The request and the pod's policy. `None`: not a pod of ours, or nothing that is ever captured; leave
    /// it alone. So is a call that already goes to the sidecar at an address of the pod's private prefix (the
    /// programs may be linked twice).
    #[inline(always)]
    pub(crate) fn new(
        sock: &SockAddr,
        dialled: Endpoint,
        bound: Ip,
    ) -> Option<(Request, &'static PodConfig)> {
        let cookie = sock.cookie();
        let pod = maps::pod(cookie)?;
        let protocol = sock.protocol()?;
        if in_prefix(&dialled.ip) && pod.is_listener(dialled.port) {
            return None;
        }
        if matches!(protocol, Protocol::Udp) && pod.flags & flags::DNS == 0 {
            return None;
        }
        // With such a socket the proxy goes on to the application, whichever address it is bound to: the
        // pod's own, when the client is in the pod.
        let goes_on = pod.flags & flags::TPROXY != 0 && role::is_transparent(sock.role());
        let bound = if goes_on { Ip::PASSTHROUGH4 } else { bound };
        let flow = Flow::new(protocol, dialled, bound, sock.caller());
        Some((Request { cookie, flow, zero: 0 }, pod))
    }
}

/// A call that has to be decided: who, where to, and the pod's policy.
pub(crate) struct Call<'a> {
    pub(crate) request: &'a Request,
    pub(crate) flow: &'a Flow,
    pub(crate) facts: PodFacts,
}

impl<'a> Call<'a> {
    #[inline(always)]
    pub(crate) fn new(request: &'a Request, pod: &'static PodConfig) -> Call<'a> {
        let facts = PodFacts { cookie: request.cookie, pod, family: request.flow.family };
        Call { request, flow: &request.flow, facts }
    }

    /// Whether the guard has to be told that this call was left alone, and by which rule. It sees the proxy's
    /// uid itself, and the interface; what stays in the pod does not come by it.
    #[inline(always)]
    fn marked_for_guard(&self, rule: Rule) -> bool {
        let guarded = self.facts.pod.flags & flags::GUARD != 0;
        let seen = match self.flow.protocol {
            Protocol::Tcp => true,
            Protocol::Udp => self.flow.dst.port == DNS_PORT,
        };
        guarded
            && seen
            && matches!(
                rule,
                Rule::ExcludedPort | Rule::ProxyGid | Rule::OwnerGroup | Rule::ExcludedRange | Rule::NoMatch
            )
    }

    /// Whether the destination is out of reach, because the pod had no address of its family at attach: the
    /// kernel would have no route and no source. What else than loopback a socket is bound to came later;
    /// link-local addresses are always there.
    #[inline(always)]
    pub(crate) fn unreachable(&self) -> bool {
        let (dst, src, family) = (&self.flow.dst.ip, &self.flow.src, self.flow.family);
        self.facts.pod.source(family).is_unspecified()
            && (src.is_unspecified() || src.is_loopback_of(family))
            && !dst.is_loopback_of(family)
            && !dst.is_link_local()
            && !self.facts.own_address(dst)
    }

    /// Whether the client's address without us would be the one that it dials: another address of the pod, or
    /// `::1`. (For an IPv4 loopback address the kernel chooses 127.0.0.1, also on the way to a slot.)
    #[inline(always)]
    pub(crate) fn has_own_source(&self) -> bool {
        let dst = &self.flow.dst.ip;
        self.flow.src.is_unspecified() && (dst.same(&Ip::LOCALHOST6) || self.facts.own_address(dst))
    }
}

/// What [`decide_call`] returns: the rule, above it the event to be counted where the flow is left alone,
/// above that the verdict, by the number that trace records have.
#[derive(Clone, Copy)]
pub(crate) struct Decision(pub(crate) u64);

impl Decision {
    #[inline(always)]
    fn of(call: &Call<'_>, decision: Outbound) -> Decision {
        let (verdict, rule) = match decision {
            Outbound::Direct(rule) => (verdict::DIRECT, rule),
            Outbound::Redirect(Target::Outbound, rule) => (verdict::OUTBOUND, rule),
            Outbound::Redirect(Target::Inbound, rule) => (verdict::INBOUND, rule),
            Outbound::Redirect(Target::Dns, rule) => (verdict::DNS, rule),
        };
        let marked = u64::from(call.marked_for_guard(rule));
        Decision(rule as u64 | (direct_event(rule) as u64) << 16 | u64::from(verdict) << 32 | marked << 48)
    }

    /// Number of the rule.
    #[inline(always)]
    pub(crate) fn rule(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    /// What is to be counted where the flow is left alone.
    #[inline(always)]
    pub(crate) fn event(self) -> u64 {
        self.0 >> 16 & 0xffff
    }

    /// The verdict's number.
    #[inline(always)]
    pub(crate) fn verdict(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff
    }

    /// Whether the guard has to be told that the call was left alone.
    #[inline(always)]
    pub(crate) fn marked(self) -> bool {
        self.0 >> 48 != 0
    }

    /// Which listener the flow goes to; `None` where it is left alone.
    #[inline(always)]
    pub(crate) fn target(self) -> Option<Target> {
        match self.verdict() {
            verdict::OUTBOUND => Some(Target::Outbound),
            verdict::INBOUND => Some(Target::Inbound),
            verdict::DNS => Some(Target::Dns),
            _ => None,
        }
    }
}

/// Decides about a call. The verifier walks a function with global linkage once, and not again behind every
/// branch that leads to it. No pointer is ever null; it wants to be told.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn decide_call(request: *const Request, pod: *const PodConfig) -> u64 {
    // SAFETY: the caller passes references; `pod` is a value of a map.
    let (Some(request), Some(pod)) = (unsafe { request.as_ref() }, unsafe { pod.as_ref() }) else {
        return u64::from(verdict::OUTBOUND) << 32;
    };
    let call = Call::new(request, pod);
    Decision::of(&call, decide(call.flow, &call.facts)).0
}
