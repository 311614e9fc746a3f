//! What is captured in a pod: Istio's annotations as types.
//!
//! Parse once, then trust the type: annotations, command-line flags and the stored attachment all become a
//! [`Policy`], and only a [`Policy`] is written to the maps.

pub mod annotations;
pub mod grammar;
pub mod owner_groups;
pub mod parameters;
mod runs;

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Everything that decides which of a pod's connections go through the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `interceptionMode`: what the application sees as its client
    #[serde(default)]
    pub interception_mode: InterceptionMode,
    /// `includeOutboundIPRanges`
    pub include_outbound_ip_ranges: Ranges,
    /// `excludeOutboundIPRanges`
    pub exclude_outbound_ip_ranges: Vec<IpNet>,
    /// `includeOutboundPorts`
    #[serde(with = "runs")]
    pub include_outbound_ports: BTreeSet<u16>,
    /// `excludeOutboundPorts`
    #[serde(with = "runs")]
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// `includeInboundPorts`
    pub include_inbound_ports: Ports,
    /// `excludeInboundPorts`; honoured only where `include_inbound_ports` is [`Ports::All`]
    #[serde(with = "runs")]
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// `excludeInterfaces`
    pub exclude_interfaces: Vec<String>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS` and `..._EXCLUDE`
    pub owner_groups: OwnerGroups,
    /// `ISTIO_META_DNS_CAPTURE`: port 53 over TCP and UDP goes to the DNS proxy
    pub dns_capture: bool,
    /// `dnsServers`: the servers whose DNS is captured, each a range of one address
    #[serde(default = "Ranges::all")]
    pub dns_servers: Ranges,
    /// Whether the guard stands on the pod's interfaces.
    #[serde(default)]
    pub guard: Guard,
    /// The sidecar.
    pub proxy: Proxy,
    /// Names of the parameters that the node's `defaults` say and the pod's annotations do not.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub node_defaults: BTreeSet<String>,
}

/// What the application sees as the client of a connection that came through the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterceptionMode {
    /// The sidecar, at 127.0.0.6 or ::6.
    #[default]
    #[serde(rename = "REDIRECT")]
    Redirect,
    /// The client itself.
    #[serde(rename = "TPROXY")]
    Tproxy,
}

impl InterceptionMode {
    /// The mode of that name, as the annotation has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<InterceptionMode> {
        match name {
            "REDIRECT" => Some(InterceptionMode::Redirect),
            "TPROXY" => Some(InterceptionMode::Tproxy),
            _ => None,
        }
    }

    /// The name, as the annotation has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            InterceptionMode::Redirect => "REDIRECT",
            InterceptionMode::Tproxy => "TPROXY",
        }
    }
}

/// What becomes of a packet that goes around the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Guard {
    /// The guard drops and counts it.
    #[default]
    Enforce,
    /// The guard counts it and lets it pass.
    Audit,
    /// There is no guard.
    Off,
}

impl Guard {
    /// The value of the annotation, the configuration key and the flag.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Guard> {
        match name {
            "enforce" => Some(Guard::Enforce),
            "audit" => Some(Guard::Audit),
            "off" => Some(Guard::Off),
            _ => None,
        }
    }
}

/// A list of ranges, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ranges {
    /// `*`
    All,
    /// A list; empty means none.
    List(Vec<IpNet>),
}

impl Ranges {
    /// All: what a record says that was written before there was such a list.
    fn all() -> Ranges {
        Ranges::All
    }
}

/// A list of ports, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ports {
    /// `*`
    All,
    /// A list; empty means none.
    List(#[serde(with = "runs")] BTreeSet<u16>),
}

/// Which groups' outbound traffic is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OwnerGroups {
    /// All but these (empty: all).
    AllBut(BTreeSet<u32>),
    /// Only these.
    Only(BTreeSet<u32>),
}

impl OwnerGroups {
    /// The groups that are named, as the pod sees them.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let (OwnerGroups::AllBut(groups) | OwnerGroups::Only(groups)) = self;
        groups.iter().copied()
    }
}

/// The sidecar: whose traffic is its own, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its uid, as the pod sees it.
    pub uid: u32,
    /// Its gid, as the pod sees it.
    pub gid: u32,
    /// The outbound listener.
    pub outbound_port: u16,
    /// The inbound listener.
    pub inbound_port: u16,
    /// The DNS proxy.
    pub dns_port: u16,
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy { uid: 1337, gid: 1337, outbound_port: 15001, inbound_port: 15006, dns_port: 15053 }
    }
}
