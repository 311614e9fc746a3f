//! What every part of a release needs to know.

use std::path::PathBuf;

/// One line about the project.
pub(crate) const SUMMARY: &str = "Transparent redirection of pod traffic into the Envoy sidecar";
/// More lines.
pub(crate) const DESCRIPTION: [&str; 3] = [
    "A chained CNI plugin that steers a Kubernetes pod's traffic through its",
    "sidecar with eBPF programs, without iptables. Contains the plugin, the",
    "operator's tool and the optional node agent.",
];

/// What all parts need to know.
pub(crate) struct Release {
    pub(crate) root: PathBuf,
    pub(crate) out: PathBuf,
    pub(crate) version: String,
    pub(crate) arch: String,
    /// Seconds since 1970 that every file bears.
    pub(crate) date: u64,
}
