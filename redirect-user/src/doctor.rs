//! Can this node run it, and is everything as it should be? Everything is tried, never derived from a version
//! number.
//!
//! A check has a stable id, and docs/doctor.md has a section for each. [`checks`] is the list;
//! [`requirements`] are what an ADD needs, [`neighbours`] who else is on the node, [`pods`] what is attached,
//! [`inside`] one pod. What the runtime's network configuration says is looked at by the tool, which knows
//! the agent's reader.
//!
//! "Could not be tried" is a state of its own: it is never taken for "missing".

pub mod checks;
mod inside;
mod neighbours;
mod pods;
mod requirements;

use std::path::PathBuf;

use serde::Serialize;

pub use self::checks::{CHECKS, Check};
pub use self::pods::captures_nothing;
use crate::attach::record::Attachment;
use crate::node::Node;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// As it should be.
    Found,
    /// It works, and will surprise somebody.
    Warning,
    /// An ADD would fail, or a pod is not as it was attached.
    Missing,
    /// It could not be tried, which says nothing.
    Untried,
}

/// One check and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `RC` and four digits; stable.
    pub id: &'static str,
    /// What it found.
    pub status: Status,
    /// What was looked at.
    pub what: &'static str,
    /// What was seen.
    pub detail: String,
    /// What to do; empty where it is as it should be.
    pub remedy: String,
}

/// What a check says, before it is put together with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// As it should be.
    Found(String),
    /// It works, and will surprise somebody.
    Warning(String),
    /// It is not there.
    Missing(String),
    /// It could not be tried.
    Untried(String),
}

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root directory of the node, as this process sees it.
    pub host_root: PathBuf,
    /// Where cgroup v2 is, as the plugin's `cgroupRoot` says it; else it is found.
    pub cgroup_root: Option<PathBuf>,
    /// Only what matters before an installation.
    pub before: bool,
    /// The whole of the verifier's log, where a program is refused.
    pub verifier_log: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { host_root: "/".into(), cgroup_root: None, before: false, verifier_log: false }
    }
}

/// Examines the node and changes nothing but the state directory, which it makes.
#[must_use]
pub fn examine(node: &Node, options: &Options) -> Vec<Finding> {
    let mut findings = requirements::examine(node, options);
    findings.extend(neighbours::examine(node, options));
    if !options.before {
        findings.extend(pods::examine(node));
    }
    findings
}

/// Examines one attached pod.
#[must_use]
pub fn examine_pod(node: &Node, attachment: &Attachment) -> Vec<Finding> {
    inside::examine(node, attachment)
}
