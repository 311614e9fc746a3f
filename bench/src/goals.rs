//! The marks that this project set itself, and whether this run met them. Each is computed from values that
//! were measured side by side; none is rounded in our favour.

use serde::Serialize;

use crate::results::{Measure, Results};
use crate::sample::{Summary, quantile};
use crate::scene::Mode;
use crate::{add, unrelated};

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

/// All marks for which this run has values, on a machine with so many CPUs and for so many pods at once.
pub(crate) fn all(results: &Results, cpus: usize, burst: usize) -> Vec<Goal> {
    let mut goals = Vec::new();
    connections(results, &mut goals);
    steady(results, &mut goals);
    others(results, &mut goals);
    calls(results, &mut goals);
    crowd(results, cpus, burst, &mut goals);
    memory(results, &mut goals);
    growth(results, &mut goals);
    goals
}

fn connections(results: &Results, goals: &mut Vec<Goal>) {
    for (id, what, at_most) in [
        ("outbound4", "outbound IPv4", 0.10),
        ("inbound4", "inbound IPv4", 0.15),
        ("outbound6", "outbound IPv6", 0.10),
        ("inbound6", "inbound IPv6", 0.13),
    ] {
        let measure = results.get(&format!("setup-{id}-cpu"));
        if let Some(ratio) = measure.and_then(|measure| measure.added_ratio(Mode::Ours)) {
            let what =
                format!("CPU added to a new connection, {what}, as a part of what iptables-legacy adds");
            goals.push(Goal::of(what, &ratio, at_most));
        }
    }
}

/// The guard sees every packet of a pod, so it is part of both.
fn steady(results: &Results, goals: &mut Vec<Goal>) {
    let (none, ours) = (Mode::None.label(), Mode::Ours.label());
    for direction in ["outbound", "inbound"] {
        let trip = results.get(&format!("steady-{direction}-trip"));
        if let Some(ratio) = trip.and_then(|measure| measure.ratio(ours, none)) {
            let what = format!("round trip on a kept connection, {direction}, to unredirected");
            goals.push(Goal::of(what, &ratio, 1.02));
        }
        let rate = results.get(&format!("steady-{direction}-bulk"));
        if let Some(ratio) = rate.and_then(|measure| measure.ratio(none, ours)) {
            let what = format!("throughput of a kept connection, {direction}, unredirected to ours");
            goals.push(Goal::of(what, &ratio, 1.02));
        }
    }
    // Packets come by the guard inbound only; outbound they stay on lo.
    for (id, of, to, what) in [
        ("steady-inbound-trip", Mode::Ours, Mode::Unguarded, "round trip on a kept connection, inbound"),
        ("steady-inbound-bulk", Mode::Unguarded, Mode::Ours, "time for a big send, inbound"),
    ] {
        let measure = results.get(id);
        if let Some(ratio) = measure.and_then(|measure| measure.ratio(of.label(), to.label())) {
            goals.push(Goal::of(format!("{what}, with the guard to without"), &ratio, 1.02));
        }
    }
}

fn others(results: &Results, goals: &mut Vec<Goal>) {
    let measure = results.get("unrelated-getsockopt");
    if let Some(ratio) = measure.and_then(|measure| measure.ratio(unrelated::INSIDE, unrelated::BARE)) {
        goals.push(Goal::of("getsockopt of others in an enrolled pod, to not attached", &ratio, 1.5));
    }
}

fn calls(results: &Results, goals: &mut Vec<Goal>) {
    if let Some(wall) = results.get("add-wall") {
        for (label, what, at_most) in [(add::ADD, "ADD", 1.9), (add::DEL, "DEL", 1.0)] {
            if let Some(summary) = summary(wall, label) {
                goals.push(Goal::of(format!("{what}, whole process, p50, ms"), &summary, at_most));
            }
        }
        for commands in [add::LEGACY, add::NFT] {
            if let Some(ratio) = wall.ratio(add::ADD, commands) {
                goals.push(Goal::of(format!("ADD to {commands}"), &ratio, 0.08));
            }
        }
    }
    if let Some(summary) = results.get("first-wall").and_then(|first| summary(first, add::ADD)) {
        goals.push(Goal::of("first ADD after a boot, ms", &summary, 120.0));
    }
    if let Some(summary) = results.get("version-wall").and_then(|version| summary(version, "redirect-cni")) {
        goals.push(Goal::of("VERSION, start to exit, ms", &summary, 1.5));
    }
    if let Some(size) = results.plugin_bytes {
        goals.push(Goal::new("plugin binary, MiB", size as f64 / f64::from(1 << 20), 3.0));
    }
}

/// The last of a crowd cannot be done before the CPUs have done all of them.
fn crowd(results: &Results, cpus: usize, pods: usize, goals: &mut Vec<Goal>) {
    let burst = results.get("burst-wall");
    let cpu = results.get("add-cpu").and_then(|cpu| summary(cpu, add::ADD));
    let (Some(burst), Some(cpu)) = (burst, cpu) else { return };
    let Some(values) = burst.values(add::ADD) else { return };
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let least = cpu.median * pods as f64 / cpus.max(1) as f64;
    let what = format!("{}, p99, to what so many ADDs take the CPUs", burst.title.to_lowercase());
    goals.push(Goal::new(what, quantile(&sorted, 0.99) / least, 1.1));
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
    for (id, what) in [
        ("pods-connect", "enrolled pods"),
        ("ranges-ours", "excluded ranges"),
        ("destinations-connect", "destinations in use"),
    ] {
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
