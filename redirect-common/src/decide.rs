//! The one decision function. The rule numbers are those of Istio's `ISTIO_OUTPUT` chain in the order in
//! which iptables evaluates them; docs/rules.md has the list in words.
//!
//! The kernel answers the questions of [`Facts`] with map look-ups, user space with plain collections; each
//! is asked only when the rules before it did not decide, so a look-up that is not needed is not made.

use crate::addr::Ip;
use crate::flow::{Flow, Protocol};

/// HBONE, the tunnel port of ambient mesh: a real listener that is never captured inbound or on self-calls.
pub const HBONE_PORT: u32 = 15008;
/// The DNS port.
pub const DNS_PORT: u32 = 53;
/// The agent's status port, whose default is that outbound traffic to it is not captured either.
pub const STATUS_PORT: u16 = 15020;
/// Ports that the sidecar serves itself (merged metrics, health, its own metrics): never captured inbound.
pub const PROXY_PORTS: [u16; 3] = [STATUS_PORT, 15021, 15090];

/// An enum of rules with stable numbers (the kernel writes them into trace records) and labels.
macro_rules! rules {
    ($(#[doc = $enum_doc:literal])+ $enum:ident { $($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+ }) => {
        $(#[doc = $enum_doc])+
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $enum { $($(#[doc = $doc])+ $name = $number,)+ }

        impl $enum {
            /// The rule of that number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<$enum> {
                match number { $($number => Some($enum::$name),)+ _ => None }
            }

            /// The name that `redirect explain` and `redirect trace` show.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $($enum::$name => $label,)+ }
            }
        }
    };
}

rules! {
    /// The rule that decided about an outbound flow. The numbers are Istio's evaluation order.
    Rule {
        /// Leaves through an interface named in `excludeInterfaces`.
        ExcludedInterface = 0, "excluded-interface";
        /// Destination port in `excludeOutboundPorts`.
        ExcludedPort = 1, "excluded-port";
        /// Over lo from 127.0.0.6 or ::6: Envoy's inbound connection to the application.
        Passthrough = 2, "passthrough";
        /// The proxy dials its own pod: goes in by the inbound listener.
        ProxyUidSelfCall = 3, "proxy-uid-self-call";
        /// The application dials its own pod or localhost.
        AppOverLoopback = 4, "app-over-loopback";
        /// The proxy's own traffic, by uid.
        ProxyUid = 5, "proxy-uid";
        /// As rule 3, by gid.
        ProxyGidSelfCall = 6, "proxy-gid-self-call";
        /// As rule 4, by gid.
        AppOverLoopbackByGid = 7, "app-over-loopback-by-gid";
        /// The proxy's own traffic, by gid.
        ProxyGid = 8, "proxy-gid";
        /// The caller's group is not one whose traffic is captured.
        OwnerGroup = 9, "owner-group";
        /// DNS capture.
        Dns = 10, "dns";
        /// Destination 127.0.0.1 or ::1.
        Localhost = 11, "localhost";
        /// Destination in `excludeOutboundIPRanges`.
        ExcludedRange = 12, "excluded-range";
        /// Destination port in `includeOutboundPorts`.
        IncludedPort = 13, "included-port";
        /// Destination in `includeOutboundIPRanges`, or `*`.
        IncludedRange = 14, "included-range";
        /// No rule matched: outside every included range, or UDP that is not DNS.
        NoMatch = 15, "no-match";
    }
}

/// Which of the sidecar's listeners a flow goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Envoy's virtual outbound listener (15001).
    Outbound,
    /// Envoy's virtual inbound listener (15006): a self-call.
    Inbound,
    /// The agent's DNS proxy (15053).
    Dns,
}

/// What becomes of an outbound flow, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Left alone.
    Direct(Rule),
    /// Taken to the sidecar.
    Redirect(Target, Rule),
}

/// The questions that [`decide`] asks about a pod's policy.
pub trait Facts {
    /// Is this port in `excludeOutboundPorts`?
    fn port_excluded(&self, port: u32) -> bool;
    /// Is this port in `includeOutboundPorts`?
    fn port_included(&self, port: u32) -> bool;
    /// Is this address in `excludeOutboundIPRanges`?
    fn range_excluded(&self, ip: &Ip) -> bool;
    /// Is this address in `includeOutboundIPRanges` (true for `*`)?
    fn range_included(&self, ip: &Ip) -> bool;
    /// Does an address outside 127/8, ::1 and ::6 belong to the pod, so that the kernel routes it over lo?
    fn own_address(&self, ip: &Ip) -> bool;
    /// Is this address reached through an interface named in `excludeInterfaces`?
    fn interface_excluded(&self, ip: &Ip) -> bool;
    /// Does `excludeInterfaces` name `lo`?
    fn lo_excluded(&self) -> bool;
    /// Does the include list contain a loopback range, which lifts the app-over-lo rules (4 and 7)?
    fn loopback_included(&self) -> bool;
    /// Is traffic of this group outside the owner-group lists?
    fn group_excluded(&self, gid: u32) -> bool;
    /// Is DNS captured?
    fn dns_captured(&self) -> bool;
    /// Is this address in `dnsServers` (true for `*`)? Asked only where DNS is captured.
    fn dns_server(&self, ip: &Ip) -> bool;
    /// Is the pod in TPROXY mode, and would a connection from outside to this port be captured?
    fn tproxy_captures(&self, port: u32) -> bool;
    /// The proxy's uid, as the initial user namespace sees it.
    fn proxy_uid(&self) -> u32;
    /// The proxy's gid, as the initial user namespace sees it.
    fn proxy_gid(&self) -> u32;
}

/// Decides about one outbound connection or datagram.
#[inline(always)]
pub fn decide<F: Facts>(flow: &Flow, facts: &F) -> Outbound {
    use Outbound::{Direct, Redirect};
    let tcp = matches!(flow.protocol, Protocol::Tcp);
    let dns = facts.dns_captured();
    let port = flow.dst.port;
    let ip = &flow.dst.ip;

    // UDP matters to DNS capture only; everything else would fall through all rules.
    let may_be_captured = tcp || (dns && port == DNS_PORT);
    if !may_be_captured {
        return Direct(Rule::NoMatch);
    }
    let over_lo = ip.is_loopback_of(flow.family) || facts.own_address(ip);
    if if over_lo { facts.lo_excluded() } else { facts.interface_excluded(ip) } {
        return Direct(Rule::ExcludedInterface);
    }
    let localhost = ip.same(&flow.family.localhost());
    let by_uid = flow.caller.uid == facts.proxy_uid();
    let by_gid = flow.caller.gid == facts.proxy_gid();
    let passthrough = flow.src.same(&Ip::PASSTHROUGH4) || flow.src.same(&Ip::PASSTHROUGH6);
    // In TPROXY mode the chain of PREROUTING decides about self-calls as well, for uid and gid alike, and
    // none of the rules below can keep them from it.
    if over_lo && (by_uid || by_gid) && tcp && !localhost && !passthrough && facts.tproxy_captures(port) {
        let rule = if by_uid { Rule::ProxyUidSelfCall } else { Rule::ProxyGidSelfCall };
        return Redirect(Target::Inbound, rule);
    }
    if facts.port_excluded(port) {
        return Direct(Rule::ExcludedPort);
    }
    if over_lo {
        if passthrough {
            return Direct(Rule::Passthrough);
        }
        let self_call = tcp && !localhost && port != HBONE_PORT;
        // With DNS capture, rules 4 and 7 let the application's DNS pass on to rule 10.
        let app_is_direct = !facts.loopback_included() && (!dns || (tcp && port != DNS_PORT));
        if by_uid {
            if self_call && !(dns && port == DNS_PORT) {
                return Redirect(Target::Inbound, Rule::ProxyUidSelfCall);
            }
            return Direct(Rule::ProxyUid);
        }
        if app_is_direct {
            return Direct(Rule::AppOverLoopback);
        }
        if by_gid {
            if self_call {
                return Redirect(Target::Inbound, Rule::ProxyGidSelfCall);
            }
            return Direct(Rule::ProxyGid);
        }
    } else {
        if by_uid {
            return Direct(Rule::ProxyUid);
        }
        if by_gid {
            return Direct(Rule::ProxyGid);
        }
    }
    if facts.group_excluded(flow.caller.gid) {
        return Direct(Rule::OwnerGroup);
    }
    if dns && port == DNS_PORT && facts.dns_server(ip) {
        return Redirect(Target::Dns, Rule::Dns);
    }
    if !tcp {
        return Direct(Rule::NoMatch);
    }
    if localhost {
        return Direct(Rule::Localhost);
    }
    if facts.range_excluded(ip) {
        return Direct(Rule::ExcludedRange);
    }
    if facts.port_included(port) {
        return Redirect(Target::Outbound, Rule::IncludedPort);
    }
    if facts.range_included(ip) {
        return Redirect(Target::Outbound, Rule::IncludedRange);
    }
    Direct(Rule::NoMatch)
}

rules! {
    /// The rule that decided about an inbound connection.
    InboundRule {
        /// Arrived on an interface named in `excludeInterfaces`.
        ExcludedInterface = 0, "excluded-interface";
        /// `includeInboundPorts` is empty: no inbound capture.
        Off = 1, "off";
        /// HBONE.
        Hbone = 2, "hbone";
        /// `includeInboundPorts` is `*` and the port is in `excludeInboundPorts`.
        ExcludedPort = 3, "excluded-port";
        /// `includeInboundPorts` is `*`.
        All = 4, "all";
        /// The port is listed in `includeInboundPorts`.
        Listed = 5, "listed";
        /// The port is not listed in `includeInboundPorts`.
        NotListed = 6, "not-listed";
    }
}

/// What becomes of an inbound connection, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Left to whoever listens on the port.
    Direct(InboundRule),
    /// Taken to the sidecar's inbound listener.
    Redirect(InboundRule),
}

/// What `includeInboundPorts` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundMode {
    /// Empty: nothing is captured.
    Off,
    /// `*`: everything but the excluded ports.
    All,
    /// A list.
    List,
}

/// The questions that [`decide_inbound`] asks about a pod's policy.
pub trait InboundFacts {
    /// Did the packet arrive on an interface named in `excludeInterfaces`?
    fn arrived_on_excluded_interface(&self) -> bool;
    /// What `includeInboundPorts` says.
    fn mode(&self) -> InboundMode;
    /// Is this port in `excludeInboundPorts`?
    fn port_excluded(&self, port: u32) -> bool;
    /// Is this port listed in `includeInboundPorts`?
    fn port_listed(&self, port: u32) -> bool;
    /// Is the pod in TPROXY mode? Istio's rules do not make an exception of HBONE then.
    fn tproxy(&self) -> bool;
}

/// Decides about one inbound TCP connection that did not come over lo (those were decided at `connect()`).
#[inline(always)]
pub fn decide_inbound<F: InboundFacts>(port: u32, facts: &F) -> Inbound {
    if facts.arrived_on_excluded_interface() {
        return Inbound::Direct(InboundRule::ExcludedInterface);
    }
    let mode = facts.mode();
    if matches!(mode, InboundMode::Off) {
        return Inbound::Direct(InboundRule::Off);
    }
    if port == HBONE_PORT && !facts.tproxy() {
        return Inbound::Direct(InboundRule::Hbone);
    }
    if matches!(mode, InboundMode::All) {
        if facts.port_excluded(port) {
            return Inbound::Direct(InboundRule::ExcludedPort);
        }
        return Inbound::Redirect(InboundRule::All);
    }
    if facts.port_listed(port) {
        return Inbound::Redirect(InboundRule::Listed);
    }
    Inbound::Direct(InboundRule::NotListed)
}
