//! This node tries itself: a scratch pod with a small sidecar of our own, every verdict once over IPv4 and
//! IPv6, and closed when the sidecar is away.
//!
//! [`run`] is what `redirect verify` and the agent's readiness call. In reading order: [`scratch`] makes the
//! pod (network namespace, cgroup, processes) and takes it away; [`wire`] joins it with a namespace that
//! plays the rest of the world; [`talk`] is both ends of a connection; [`actor`] is the process that talks
//! inside the pod; [`trials`] is the list of what is tried.
//!
//! Nothing of it can collide with a pod. The namespaces have no names, the container id and the cgroup begin
//! with [`PREFIX`], and the addresses are of ranges for benchmarks, in a namespace of their own. What a
//! killed run leaves, the next run and `redirect gc` remove.

pub mod actor;
mod ports;
mod scratch;
mod talk;
mod trials;
mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redirect_common::addr::Family;
use serde::Serialize;

use crate::inspect;
use crate::kernel::pins;
use crate::kernel::stamp::Stamp;
use crate::node::{Node, fault};
pub use crate::verify::scratch::{Error, PREFIX};
use crate::verify::scratch::{Place, Scratch};
pub(crate) use crate::verify::scratch::{is_left_over, sweep};
use crate::verify::trials::{SIDECAR_AWAY, TRIALS, Trial};

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where cgroup v2 is, as the plugin's `cgroupRoot` says it; else it is found.
    pub cgroup_root: Option<PathBuf>,
}

/// How one trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As it should be.
    Passed,
    /// Something else happened.
    Failed,
    /// It could not be tried: the node has no IPv6, or the run ended before.
    Untried,
}

/// One trial and its end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// What was tried.
    pub name: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// What should happen.
    pub expected: &'static str,
    /// How it ended.
    pub state: State,
    /// What happened instead, or why it could not be tried; empty when it passed.
    pub detail: String,
    /// How long it took.
    pub milliseconds: u64,
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Every trial passed or could not be tried for a reason of the node, and nothing else is wrong.
    pub passed: bool,
    /// The trials, in order.
    pub trials: Vec<Tried>,
    /// What is wrong besides: why there was no scratch pod, or which link, filter or program is not as it was
    /// attached.
    pub faults: Vec<String>,
    /// How long it all took.
    pub milliseconds: u64,
}

impl Report {
    /// How many trials ended so.
    #[must_use]
    pub fn count(&self, state: State) -> usize {
        self.trials.iter().filter(|trial| trial.state == state).count()
    }
}

/// Tries the node. `stop` is looked at between trials; when it is set, the rest is not tried and the run has
/// not passed.
///
/// The calling process must be the binary `redirect`: it is started again as the pod's processes.
#[must_use]
pub fn run(node: &Node, options: &Options, stop: &AtomicBool) -> Report {
    let start = Instant::now();
    let mut report = Report { passed: false, trials: Vec::new(), faults: Vec::new(), milliseconds: 0 };
    match Scratch::make(node, &Place::below(options.cgroup_root.as_deref())) {
        Ok(mut scratch) => {
            fault::pause("verify-attached");
            try_all(node, &mut scratch, stop, &mut report);
            if let Err(error) = scratch.remove() {
                report
                    .faults
                    .push(format!("the scratch pod could not be removed: {error}; run `redirect gc`"));
            }
        }
        Err(error) => {
            report.faults.push(error.to_string());
            let none = |trial: &'static Trial, family| untried(trial, family, "there is no scratch pod");
            report.trials = in_order().map(|(trial, family)| none(trial, family)).collect();
        }
    }
    if stop.load(Ordering::Relaxed) {
        report.faults.push("interrupted".into());
    }
    report.passed = report.faults.is_empty() && report.count(State::Failed) == 0;
    report.milliseconds = start.elapsed().as_millis() as u64;
    report
}

/// Every trial over each family; those without a sidecar last.
fn in_order() -> impl Iterator<Item = (&'static Trial, Family)> {
    let families = |trial: &'static Trial| Family::ALL.map(|family| (trial, family));
    TRIALS.iter().flat_map(families)
}

fn try_all(node: &Node, scratch: &mut Scratch, stop: &AtomicBool, report: &mut Report) {
    for (trial, family) in in_order() {
        if stop.load(Ordering::Relaxed) {
            report.trials.push(untried(trial, family, "interrupted"));
            continue;
        }
        if family == Family::V6 && !scratch.has_ipv6() {
            report.trials.push(untried(trial, family, "IPv6 is switched off on this node"));
            continue;
        }
        if trial.name == SIDECAR_AWAY {
            scratch.stop_sidecar();
        }
        let begun = Instant::now();
        let (state, detail) = match (trial.attempt)(scratch, family) {
            Ok(()) => (State::Passed, String::new()),
            Err(detail) => (State::Failed, detail),
        };
        let milliseconds = begun.elapsed().as_millis() as u64;
        report.trials.push(Tried { state, detail, milliseconds, ..untried(trial, family, "") });
    }
    report.faults.extend(drift(node, scratch));
}

fn untried(trial: &Trial, family: Family, why: &str) -> Tried {
    Tried {
        name: trial.name,
        family: family.name(),
        expected: trial.expected,
        state: State::Untried,
        detail: why.to_owned(),
        milliseconds: 0,
    }
}

/// What of the scratch pod is not as it was attached, and whether the programs are of this version.
fn drift(node: &Node, scratch: &Scratch) -> Vec<String> {
    let mut faults = match inspect::compare(node, scratch.attachment()) {
        Ok(drift) => drift.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("cannot look at the scratch pod's attachment: {error}")],
    };
    if let Some(stamp) = Stamp::read(&pins::current(node)).filter(|stamp| !stamp.is_own()) {
        faults.push(format!(
            "the node runs programs of another build ({stamp}) than this tool carries: `redirect upgrade` replaces them"
        ));
    }
    faults
}
