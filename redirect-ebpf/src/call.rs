//! What `connect` and `dns` have in common: a call of the application, with everything that its decision
//! depends on.

use redirect_common::decide::DNS_PORT;
use redirect_common::{Endpoint, Facts as _, Flow, Ip, Protocol, Rule, flags};

use crate::ctx::SockAddr;
use crate::facts::PodFacts;
use crate::maps;

/// What a sock_addr hook returns: let the call go on, or refuse it.
pub(crate) const PROCEED: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

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

    /// Whether the guard has to be told that this call was left alone, and by which rule. It sees the proxy's
    /// uid itself, and the interface; what stays in the pod does not come by it.
    #[inline(always)]
    pub(crate) fn marked_for_guard(&self, rule: Rule) -> bool {
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

    /// Whether the client's address without us would be the one that it dials: another address of the pod, or
    /// `::1`. (For an IPv4 loopback address the kernel chooses 127.0.0.1, also on the way to a slot.)
    #[inline(always)]
    pub(crate) fn has_own_source(&self) -> bool {
        let dst = &self.flow.dst.ip;
        self.flow.src.is_unspecified() && (dst.same(&Ip::LOCALHOST6) || self.facts.own_address(dst))
    }
}
