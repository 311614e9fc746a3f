//! The marks that this project set itself, and whether this run met them. Each is computed from values that
//! were measured side by side; none is rounded in our favour.

use serde::Serialize;

use crate::add;
use crate::results::{Measure, Results};
use crate::sample::{Summary, quantile};
use crate::scene::Mode;

/// One mark.
#[derive(Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// Where the value is a median: the 95 % confidence interval of it.
    pub(crate) interval: Option<[f64; 2]>,
    pub(crate) at_most: f64,
    pub(crate) met: bool,
}

impl Goal {
    fn new(what: impl Into<String>, value: f64, at_most: f64) -> Goal {
        Goal { what: what.into(), value, interval: None, at_most, met: value <= at_most }
    }

    fn of(what: impl Into<String>, summary: &Summary, at_most: f64) -> Goal {
        Goal { interval: Some(summary.interval), ..Goal::new(what, summary.median, at_most) }
    }
}

/// All marks for which this run has values.
pub(crate) fn all(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    connections(results, &mut goals);
    steady(results, &mut goals);
    calls(results, &mut goals);
    memory(results, &mut goals);
    growth(results, &mut goals);
    goals
}

fn connections(results: &Results, goals: &mut Vec<Goal>) {
    for (id, what) in [
        ("outbound4", "outbound IPv4"),
        ("inbound4", "inbound IPv4"),
        ("outbound6", "outbound IPv6"),
        ("inbound6", "inbound IPv6"),
    ] {
        let measure = results.get(&format!("setup-{id}-cpu"));
        if let Some(ratio) = measure.and_then(|measure| measure.added_ratio(Mode::Ours)) {
            goals.push(Goal::of(
                format!("CPU added to a new connection, {what}, as a part of what iptables-legacy adds"),
                &ratio,
                0.20,
            ));
        }
    }
}

fn steady(results: &Results, goals: &mut Vec<Goal>) {
    for direction in ["outbound", "inbound"] {
        let measure = results.get(&format!("steady-{direction}-trip"));
        if let Some(ratio) = measure.and_then(|measure| measure.ratio(Mode::Ours.label(), Mode::None.label()))
        {
            goals.push(Goal::of(
                format!("round trip on a kept connection, {direction}, to unredirected"),
                &ratio,
                1.01,
            ));
        }
    }
}

fn calls(results: &Results, goals: &mut Vec<Goal>) {
    if let Some(wall) = results.get("add-wall") {
        if let Some(summary) = summary(wall, add::ADD) {
            goals.push(Goal::of("ADD, whole process, p50, ms", &summary, 3.0));
        }
        for commands in [add::LEGACY, add::NFT] {
            if let Some(ratio) = wall.ratio(add::ADD, commands) {
                goals.push(Goal::of(format!("ADD to {commands}"), &ratio, 0.1));
            }
        }
    }
    if let Some(burst) = results.get("burst-wall")
        && let Some(values) = burst.values(add::ADD)
    {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let what = format!("ADD, {}, p99, ms", burst.title.to_lowercase());
        goals.push(Goal::new(what, quantile(&sorted, 0.99), 50.0));
    }
    if let Some(summary) = results.get("version-wall").and_then(|version| summary(version, "redirect-cni")) {
        goals.push(Goal::of("VERSION, start to exit, ms", &summary, 1.5));
    }
    if let Some(size) = results.plugin_bytes {
        goals.push(Goal::new("plugin binary, MiB", size as f64 / f64::from(1 << 20), 4.0));
    }
}

fn memory(results: &Results, goals: &mut Vec<Goal>) {
    let sum = |id| {
        results.get(id).map(|measure: &Measure| measure.series.iter().take(2).map(|s| s.summary.median).sum())
    };
    if let Some(per_pod) = sum("pods-memory") {
        goals.push(Goal::new("kernel memory per enrolled pod (maps and programs), KiB", per_pod, 64.0));
    }
    let kernel = results.get("pods-memory").and_then(|measure| Some(measure.series.get(2)?.summary.median));
    if let Some(kernel) = kernel {
        goals.push(Goal::new("kernel memory per enrolled pod (slab, per-CPU, vmalloc), KiB", kernel, 64.0));
    }
    if let Some(fixed) = sum("node-memory").map(|kibibytes: f64| kibibytes / 1024.0) {
        goals.push(Goal::new("kernel memory per node, MiB", fixed, 16.0));
    }
}

/// The largest count to the smallest.
fn growth(results: &Results, goals: &mut Vec<Goal>) {
    for (id, what) in [("pods-connect", "enrolled pods"), ("ranges-ours", "excluded ranges")] {
        let Some(measure) = results.get(id) else { continue };
        if let [first, .., last] = measure.series.as_slice()
            && let Some(ratio) = measure.ratio(&last.label, &first.label)
        {
            let what = format!("connection with {} {what}, to one with {}", last.label, first.label);
            goals.push(Goal::of(what, &ratio, 1.05));
        }
    }
}

fn summary(measure: &Measure, label: &str) -> Option<Summary> {
    measure.series.iter().find(|series| series.label == label).map(|series| series.summary)
}
