//! What `connect` and `dns` have in common: a call of the application, with everything that its decision
//! depends on.

use redirect_common::{Endpoint, Facts as _, Flow, Ip, PodConfig, Protocol, flags};

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

    /// The address that the client would have without us; [`Ip::NONE`] where the socket has one already, or
    /// where the kernel chooses localhost by itself. Dialling another address of the pod, the client has that
    /// very address.
    #[inline(always)]
    pub(crate) fn source(&self) -> Ip {
        let dst = &self.flow.dst.ip;
        if !self.flow.src.is_unspecified() || dst.is_loopback() {
            Ip::NONE
        } else if self.facts.own_address(dst) {
            *dst
        } else {
            self.facts.pod.source(dst.family())
        }
    }
}

/// The DNS proxy listens on localhost only.
#[inline(always)]
pub(crate) fn dns_proxy(pod: &PodConfig, dst: &Endpoint) -> Endpoint {
    Endpoint { ip: dst.ip.family().localhost(), port: pod.dns_port }
}
