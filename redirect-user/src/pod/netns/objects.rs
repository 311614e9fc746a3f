//! What a network namespace has, as ip(8) knows it: addresses, links and routes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface.
    pub interface: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether it can be a source towards other hosts (neither loopback nor link-local).
    pub global: bool,
    /// Duplicate address detection goes on: the kernel does not take it as a source yet.
    pub tentative: bool,
    /// Duplicate address detection found another host with it: it is never a source.
    pub failed: bool,
}

/// A link of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The local route of one family over which the sidecar is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRoute {
    /// The pod's address, which the client's socket is to have.
    pub source: IpAddr,
    /// The kernel refuses a tentative address as a route's preferred source. A route that names the address's
    /// interface does without one: the kernel then prefers that interface's addresses (RFC 6724, rule 5), as
    /// soon as one is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tentative_on: Option<u32>,
}
