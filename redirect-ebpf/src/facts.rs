//! The maps' answers to the questions of `decide()` and `decide_inbound()`.

use redirect_common::decide::InboundMode;
use redirect_common::{
    Facts, Family, Inbound, InboundFacts, InboundRule, Ip, PodConfig, decide_inbound, flags, list, set,
};

use crate::maps::{in_ports, in_ranges, in_set, is_listening, own_address};

/// A pod's policy as the maps hold it; the flags say which look-ups can be saved.
pub(crate) struct PodFacts {
    pub(crate) cookie: u64,
    pub(crate) pod: &'static PodConfig,
    /// The family of the flow's destination.
    pub(crate) family: Family,
}

impl PodFacts {
    #[inline(always)]
    fn has(&self, flag: u32) -> bool {
        self.pod.flags & flag != 0
    }
}

impl Facts for PodFacts {
    #[inline(always)]
    fn port_excluded(&self, port: u32) -> bool {
        self.has(flags::OUTBOUND_EXCLUDED_PORTS) && in_ports(self.cookie, set::OUTBOUND_EXCLUDED, port)
    }
    #[inline(always)]
    fn port_included(&self, port: u32) -> bool {
        self.has(flags::OUTBOUND_INCLUDED_PORTS) && in_ports(self.cookie, set::OUTBOUND_INCLUDED, port)
    }
    #[inline(always)]
    fn range_excluded(&self, ip: &Ip) -> bool {
        self.has(flags::EXCLUDED_RANGES) && in_ranges(self.cookie, list::EXCLUDED, ip, self.family)
    }
    #[inline(always)]
    fn range_included(&self, ip: &Ip) -> bool {
        self.has(flags::INCLUDE_ALL)
            || (self.has(flags::INCLUDED_RANGES) && in_ranges(self.cookie, list::INCLUDED, ip, self.family))
    }
    #[inline(always)]
    fn own_address(&self, ip: &Ip) -> bool {
        is_own(self.pod, self.cookie, ip, self.family)
    }
    #[inline(always)]
    fn interface_excluded(&self, ip: &Ip) -> bool {
        self.has(flags::EXCLUDED_INTERFACES) && in_ranges(self.cookie, list::INTERFACE, ip, self.family)
    }
    #[inline(always)]
    fn lo_excluded(&self) -> bool {
        self.has(flags::LO_EXCLUDED)
    }
    #[inline(always)]
    fn loopback_included(&self) -> bool {
        self.has(flags::LOOPBACK_INCLUDED)
    }
    #[inline(always)]
    fn group_excluded(&self, gid: u32) -> bool {
        if self.has(flags::GROUPS_INCLUDED) {
            !in_set(self.cookie, set::GROUP, gid)
        } else {
            self.has(flags::GROUPS_EXCLUDED) && in_set(self.cookie, set::GROUP, gid)
        }
    }
    #[inline(always)]
    fn dns_captured(&self) -> bool {
        self.has(flags::DNS)
    }
    #[inline(always)]
    fn dns_server(&self, ip: &Ip) -> bool {
        !self.has(flags::DNS_LISTED) || in_ranges(self.cookie, list::DNS_SERVERS, ip, self.family)
    }
    #[inline(always)]
    fn tproxy_captures(&self, port: u32) -> bool {
        let facts = PacketFacts { cookie: self.cookie, pod: self.pod, interface: NO_INTERFACE };
        self.has(flags::TPROXY) && matches!(decide_inbound(port, &facts), Inbound::Redirect(_))
    }
    #[inline(always)]
    fn proxy_uid(&self) -> u32 {
        self.pod.proxy_uid
    }
    #[inline(always)]
    fn proxy_gid(&self) -> u32 {
        self.pod.proxy_gid
    }
}

/// Whether an address is one of the pod's own. Most pods have one address of each family, and link-local
/// ones.
#[inline(always)]
pub(crate) fn is_own(pod: &PodConfig, cookie: u64, ip: &Ip, family: Family) -> bool {
    if ip.same(&pod.source(family)) {
        return !ip.is_unspecified();
    }
    let asked = pod.flags & flags::MORE_ADDRESSES != 0 || matches!(family, Family::V6) && ip.is_link_local();
    asked && own_address(cookie, ip)
}

/// No interface has this index: a call has none.
pub(crate) const NO_INTERFACE: u32 = 0;

/// The pod's inbound policy as the maps hold it, and the interface of this packet.
pub(crate) struct PacketFacts {
    pub(crate) cookie: u64,
    pub(crate) pod: &'static PodConfig,
    pub(crate) interface: u32,
}

impl PacketFacts {
    /// Whether the sidecar may have the port. While it has accepted connections on one, the kernel does not
    /// give that port to the pod's outgoing connections, and for a minute after; a scanner could use up the
    /// ephemeral range. So a port of that range is the sidecar's only while an application listens on it, or
    /// where the policy lists it.
    #[inline(always)]
    pub(crate) fn wanted(&self, port: u32, rule: InboundRule) -> bool {
        matches!(rule, InboundRule::Listed) || !self.pod.is_ephemeral(port) || is_listening(self.cookie, port)
    }
}

impl InboundFacts for PacketFacts {
    #[inline(always)]
    fn arrived_on_excluded_interface(&self) -> bool {
        self.pod.flags & flags::INBOUND_INTERFACES != 0 && in_set(self.cookie, set::INTERFACE, self.interface)
    }
    #[inline(always)]
    fn mode(&self) -> InboundMode {
        if self.pod.flags & flags::INBOUND_ALL != 0 {
            InboundMode::All
        } else if self.pod.flags & flags::INBOUND_LIST != 0 {
            InboundMode::List
        } else {
            InboundMode::Off
        }
    }
    #[inline(always)]
    fn port_excluded(&self, port: u32) -> bool {
        in_ports(self.cookie, set::INBOUND_EXCLUDED, port)
    }
    #[inline(always)]
    fn port_listed(&self, port: u32) -> bool {
        in_ports(self.cookie, set::INBOUND_INCLUDED, port)
    }
    #[inline(always)]
    fn tproxy(&self) -> bool {
        self.pod.flags & flags::TPROXY != 0
    }
}
