//! The same decision as in the kernel, answered from an attachment's record, with the annotation that caused
//! it.

mod change;
mod ranges;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use redirect_common::decide::InboundMode;
use redirect_common::{
    Caller, Endpoint, Facts, Flow, Inbound, InboundFacts, InboundRule, Ip, Outbound, Protocol, Rule, Target,
    decide, decide_inbound,
};
use serde::Serialize;

use self::ranges::containing;
use crate::attach::record::{Attachment, GuardRecord, NetnsChanges};
use crate::ids::AttachmentId;
use crate::pod::routes::leaves_excluded;
use crate::policy::parameters::{
    DNS_SERVERS, EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_IP_RANGES,
    EXCLUDE_OUTBOUND_PORTS, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_IP_RANGES, INCLUDE_OUTBOUND_PORTS,
    Parameter,
};
use crate::policy::{InterceptionMode, OwnerGroups, Policy, Ports, Ranges};

/// One outbound connection or datagram to explain. Ids are as the pod sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What the application dials.
    pub dst: SocketAddr,
    /// The address that its socket is bound to.
    pub src: Option<IpAddr>,
    /// The caller's uid.
    pub uid: u32,
    /// The caller's gid.
    pub gid: u32,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `direct`, or the listener that gets the connection.
    pub verdict: String,
    /// The rule's number in Istio's order.
    pub rule: u32,
    /// The rule's name.
    pub rule_name: &'static str,
    /// What in the pod's annotations or surroundings made the rule match.
    pub cause: String,
    /// What would have to be changed for the other verdict.
    pub change: String,
}

/// Explains an outbound flow.
#[must_use]
pub fn outbound(attachment: &Attachment, question: &Question) -> Explanation {
    let src = question.src.map_or(Ip::NONE, Ip::from);
    let caller = Caller { uid: question.uid, gid: question.gid };
    let flow = Flow::new(question.protocol, Endpoint::from(question.dst), src, caller);
    let facts = RecordFacts { attachment };
    let proxy = &attachment.policy.proxy;
    let (verdict, rule) = match decide(&flow, &facts) {
        Outbound::Direct(rule) => ("direct".to_owned(), rule),
        Outbound::Redirect(Target::Outbound, rule) => {
            (format!("to outbound ({})", proxy.outbound_port), rule)
        }
        Outbound::Redirect(Target::Inbound, rule) => (format!("to inbound ({})", proxy.inbound_port), rule),
        Outbound::Redirect(Target::Dns, rule) => (format!("to dns ({})", proxy.dns_port), rule),
    };
    let cause = outbound_cause(rule, &flow, &attachment.policy);
    let change = change::of_outbound(rule, &flow, &attachment.policy);
    Explanation { verdict, rule: rule as u32, rule_name: rule.label(), cause, change }
}

/// Explains a connection that arrives from outside for a port of the pod.
#[must_use]
pub fn inbound(attachment: &Attachment, port: u16, interface: Option<u32>) -> Explanation {
    let facts = ArrivalFacts { attachment, interface };
    let (verdict, rule) = match decide_inbound(port.into(), &facts) {
        Inbound::Direct(rule) => ("direct".to_owned(), rule),
        Inbound::Redirect(rule) => (format!("to inbound ({})", attachment.policy.proxy.inbound_port), rule),
    };
    let policy = &attachment.policy;
    let says = |parameter: &Parameter, what: &str| format!("{} {what}", parameter.origin(policy));
    let cause = match rule {
        InboundRule::ExcludedInterface => EXCLUDE_INTERFACES.origin(policy),
        InboundRule::Off => says(&INCLUDE_INBOUND_PORTS, "is empty"),
        InboundRule::Hbone => "15008 is the HBONE listener".into(),
        InboundRule::ExcludedPort => says(&EXCLUDE_INBOUND_PORTS, &format!("(or built in) has {port}")),
        InboundRule::All => says(&INCLUDE_INBOUND_PORTS, "is *"),
        InboundRule::Listed => says(&INCLUDE_INBOUND_PORTS, &format!("has {port}")),
        InboundRule::NotListed => says(&INCLUDE_INBOUND_PORTS, &format!("has not {port}")),
    };
    let change = change::of_inbound(rule, port, policy);
    Explanation { verdict, rule: rule as u32, rule_name: rule.label(), cause, change }
}

/// A pod that is not attached, for a question about its policy alone: it has no address and no interface yet.
#[must_use]
pub fn planned(policy: Policy) -> Attachment {
    Attachment {
        id: AttachmentId { container_id: "-".into(), ifname: "-".into() },
        pod: None,
        network: None,
        cgroup: PathBuf::new(),
        cgroup_id: 0,
        netns: PathBuf::new(),
        cookie: 0,
        boot_id: String::new(),
        addresses: Vec::new(),
        excluded_interfaces: Vec::new(),
        interface_routes: Vec::new(),
        lo_excluded: policy.exclude_interfaces.iter().any(|name| name == "lo"),
        host_uid: policy.proxy.uid,
        host_gid: policy.proxy.gid,
        host_groups: policy.owner_groups.ids().collect(),
        guard: GuardRecord::default(),
        ephemeral_ports: (0, 0),
        changes: NetnsChanges::default(),
        orphaned: false,
        made_cgroups: Vec::new(),
        policy,
    }
}

fn outbound_cause(rule: Rule, flow: &Flow, policy: &Policy) -> String {
    let port = flow.dst.port;
    let ip = IpAddr::from(flow.dst.ip);
    let proxy = &policy.proxy;
    let says = |parameter: &Parameter, what: &str| format!("{} {what}", parameter.origin(policy));
    match rule {
        Rule::ExcludedInterface => EXCLUDE_INTERFACES.origin(policy),
        Rule::ExcludedPort => says(&EXCLUDE_OUTBOUND_PORTS, &format!("has {port}")),
        Rule::Passthrough => {
            "the socket is bound to 127.0.0.6 or ::6: the sidecar's way to the application".into()
        }
        Rule::ProxyUidSelfCall => format!("uid {} is the sidecar and {ip} is the pod itself", proxy.uid),
        Rule::ProxyGidSelfCall => format!("gid {} is the sidecar's and {ip} is the pod itself", proxy.gid),
        Rule::AppOverLoopback | Rule::AppOverLoopbackByGid => format!("{ip} is the pod itself"),
        Rule::ProxyUid => format!("uid {} is the sidecar", proxy.uid),
        Rule::ProxyGid => format!("gid {} is the sidecar's", proxy.gid),
        Rule::OwnerGroup => format!("gid {} is outside the captured owner groups", flow.caller.gid),
        Rule::Dns => match &policy.dns_servers {
            Ranges::All => "DNS capture is on".into(),
            Ranges::List(_) => format!("DNS capture is on, and {DNS_SERVERS} has {ip}"),
        },
        Rule::Localhost => format!("{ip} is localhost"),
        Rule::ExcludedRange => says(
            &EXCLUDE_OUTBOUND_IP_RANGES,
            &format!("has {}", containing(&policy.exclude_outbound_ip_ranges, ip)),
        ),
        Rule::IncludedPort => says(&INCLUDE_OUTBOUND_PORTS, &format!("has {port}")),
        Rule::IncludedRange => match &policy.include_outbound_ip_ranges {
            Ranges::All => says(&INCLUDE_OUTBOUND_IP_RANGES, "is *"),
            Ranges::List(ranges) => {
                says(&INCLUDE_OUTBOUND_IP_RANGES, &format!("has {}", containing(ranges, ip)))
            }
        },
        Rule::NoMatch if flow.protocol == Protocol::Udp => {
            "UDP other than captured DNS is never redirected".into()
        }
        Rule::NoMatch => says(&INCLUDE_OUTBOUND_IP_RANGES, &format!("does not contain {ip}")),
    }
}

/// An attachment's record as the answers to `decide()`.
pub struct RecordFacts<'a> {
    /// The record.
    pub attachment: &'a Attachment,
}

impl RecordFacts<'_> {
    fn policy(&self) -> &Policy {
        &self.attachment.policy
    }
}

fn contains(ranges: &[ipnet::IpNet], ip: &Ip) -> bool {
    let ip = IpAddr::from(*ip);
    ranges.iter().any(|range| range.contains(&ip))
}

impl Facts for RecordFacts<'_> {
    fn port_excluded(&self, port: u32) -> bool {
        self.policy().exclude_outbound_ports.contains(&(port as u16))
    }
    fn port_included(&self, port: u32) -> bool {
        self.policy().include_outbound_ports.contains(&(port as u16))
    }
    fn range_excluded(&self, ip: &Ip) -> bool {
        contains(&self.policy().exclude_outbound_ip_ranges, ip)
    }
    fn range_included(&self, ip: &Ip) -> bool {
        match &self.policy().include_outbound_ip_ranges {
            Ranges::All => true,
            Ranges::List(ranges) => contains(ranges, ip),
        }
    }
    fn own_address(&self, ip: &Ip) -> bool {
        self.attachment.addresses.contains(&IpAddr::from(*ip))
    }
    fn interface_excluded(&self, ip: &Ip) -> bool {
        leaves_excluded(&self.attachment.interface_routes, IpAddr::from(*ip))
    }
    fn lo_excluded(&self) -> bool {
        self.attachment.lo_excluded
    }
    fn loopback_included(&self) -> bool {
        match &self.policy().include_outbound_ip_ranges {
            Ranges::All => false,
            Ranges::List(ranges) => ranges.iter().any(|range| range.network().is_loopback()),
        }
    }
    fn group_excluded(&self, gid: u32) -> bool {
        match &self.policy().owner_groups {
            OwnerGroups::AllBut(groups) => groups.contains(&gid),
            OwnerGroups::Only(groups) => !groups.contains(&gid),
        }
    }
    fn dns_captured(&self) -> bool {
        self.policy().dns_capture
    }
    fn dns_server(&self, ip: &Ip) -> bool {
        match &self.policy().dns_servers {
            Ranges::All => true,
            Ranges::List(servers) => contains(servers, ip),
        }
    }
    fn tproxy_captures(&self, port: u32) -> bool {
        let facts = ArrivalFacts { attachment: self.attachment, interface: None };
        facts.tproxy() && matches!(decide_inbound(port, &facts), Inbound::Redirect(_))
    }
    fn proxy_uid(&self) -> u32 {
        self.policy().proxy.uid
    }
    fn proxy_gid(&self) -> u32 {
        self.policy().proxy.gid
    }
}

/// An attachment's record as the answers to `decide_inbound()`.
struct ArrivalFacts<'a> {
    attachment: &'a Attachment,
    interface: Option<u32>,
}

impl InboundFacts for ArrivalFacts<'_> {
    fn arrived_on_excluded_interface(&self) -> bool {
        self.interface.is_some_and(|index| self.attachment.excluded_interfaces.contains(&index))
    }
    fn mode(&self) -> InboundMode {
        match &self.attachment.policy.include_inbound_ports {
            Ports::All => InboundMode::All,
            Ports::List(ports) if ports.is_empty() => InboundMode::Off,
            Ports::List(_) => InboundMode::List,
        }
    }
    fn port_excluded(&self, port: u32) -> bool {
        self.attachment.policy.exclude_inbound_ports.contains(&(port as u16))
    }
    fn port_listed(&self, port: u32) -> bool {
        matches!(&self.attachment.policy.include_inbound_ports, Ports::List(ports) if ports.contains(&(port as u16)))
    }
    fn tproxy(&self) -> bool {
        self.attachment.policy.interception_mode == InterceptionMode::Tproxy
    }
}
