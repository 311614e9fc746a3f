//! The node that Bookinfo runs on: what differs from any other [`harness::runtime::Node`].

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::runtime::{Node, Setup};
use serde_json::json;

use crate::plan::EXCLUDED_NAMESPACES;

/// The node's own address among the pods'.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The port of the node that leads to the gateway.
pub(crate) const GATEWAY_HOST_PORT: u16 = 80;

/// Makes the node in `dir`, with `cgroup` as the root of its hierarchy, on the main thread.
pub(crate) fn start(dir: &Path, cgroup: &Path) -> Result<Node> {
    let conf = json!({ "podSource": "annotations", "excludeNamespaces": EXCLUDED_NAMESPACES });
    Node::start(&Setup { dir, cgroup, release: None, version: "1.0.0", conf, instead_of_plugin: None })
}

/// The network namespace of the calling process: the node's.
pub(crate) fn netns() -> Result<File> {
    File::open("/proc/self/ns/net").context("opening the node's network namespace")
}
