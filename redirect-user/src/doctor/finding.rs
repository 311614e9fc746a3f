//! What is asked of a doctor, and what it answers.

use std::path::PathBuf;

use serde::Serialize;

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
