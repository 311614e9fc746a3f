//! What would have to be changed for the other verdict. An annotation counts from the pod's next start, or at
//! once where the agent runs with `--live-policy`.

use std::net::IpAddr;

use redirect_common::{Flow, InboundRule, Protocol, Rule};

use super::ranges::containing;
use crate::policy::parameters::{
    DNS_SERVERS, EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_IP_RANGES,
    EXCLUDE_OUTBOUND_PORTS, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_IP_RANGES, INCLUDE_OUTBOUND_PORTS,
};
use crate::policy::{Policy, Ranges};

pub(super) fn of_outbound(rule: Rule, flow: &Flow, policy: &Policy) -> String {
    let (ip, port) = (IpAddr::from(flow.dst.ip), flow.dst.port);
    let proxy = &policy.proxy;
    match rule {
        Rule::ExcludedInterface => format!("take the interface out of {}", EXCLUDE_INTERFACES.origin(policy)),
        Rule::ExcludedPort => format!("take {port} out of {}", EXCLUDE_OUTBOUND_PORTS.origin(policy)),
        Rule::Passthrough => "bind the socket to another address than 127.0.0.6 or ::6".into(),
        Rule::ProxyUidSelfCall | Rule::ProxyUid => {
            format!("run the process as another user than {}", proxy.uid)
        }
        Rule::ProxyGidSelfCall | Rule::ProxyGid => {
            format!("run the process with another group than {}", proxy.gid)
        }
        Rule::AppOverLoopback | Rule::AppOverLoopbackByGid => {
            format!(
                "name a loopback range in {INCLUDE_OUTBOUND_IP_RANGES}; calls to the pod itself stay in it else"
            )
        }
        Rule::OwnerGroup => "run the process with a captured group, or change the node's owner groups".into(),
        Rule::Dns => match &policy.dns_servers {
            Ranges::All => format!("switch DNS capture off, or name other servers in {DNS_SERVERS}"),
            Ranges::List(_) => format!("take {ip} out of {DNS_SERVERS}"),
        },
        Rule::Localhost => "nothing can: localhost is not redirected".into(),
        Rule::ExcludedRange => format!(
            "take {} out of {}",
            containing(&policy.exclude_outbound_ip_ranges, ip),
            EXCLUDE_OUTBOUND_IP_RANGES.origin(policy)
        ),
        Rule::IncludedPort | Rule::IncludedRange => {
            format!("add {port} to {EXCLUDE_OUTBOUND_PORTS}, or {ip} to {EXCLUDE_OUTBOUND_IP_RANGES}")
        }
        Rule::NoMatch if flow.protocol == Protocol::Udp => match policy.dns_capture {
            false if port == 53 => "switch DNS capture on (ISTIO_META_DNS_CAPTURE)".into(),
            _ => "nothing can: of UDP, only DNS is captured".into(),
        },
        Rule::NoMatch => {
            format!("add {ip} to {INCLUDE_OUTBOUND_IP_RANGES}, or {port} to {INCLUDE_OUTBOUND_PORTS}")
        }
    }
}

pub(super) fn of_inbound(rule: InboundRule, port: u16, policy: &Policy) -> String {
    match rule {
        InboundRule::ExcludedInterface => {
            format!("take the interface out of {}", EXCLUDE_INTERFACES.origin(policy))
        }
        InboundRule::Off | InboundRule::NotListed => format!("add {port} to {INCLUDE_INBOUND_PORTS}"),
        InboundRule::Hbone => "nothing can: 15008 is the sidecar's own".into(),
        InboundRule::ExcludedPort => {
            format!("take {port} out of {}, unless it is built in", EXCLUDE_INBOUND_PORTS.origin(policy))
        }
        InboundRule::All => format!("add {port} to {EXCLUDE_INBOUND_PORTS}"),
        InboundRule::Listed => format!("take {port} out of {}", INCLUDE_INBOUND_PORTS.origin(policy)),
    }
}
