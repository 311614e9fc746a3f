//! What the agent counts and shows. Every name is in `docs/metrics.md`, and a test compares the two.
//!
//! What the kernel and the plugin count is read when somebody asks. Their counters go away with the pods;
//! those shown here only go up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use redirect_common::Event;
use redirect_user::node::timings::Timing;

/// What all names begin with.
const PREFIX: &str = "redirect_cni";
/// Upper ends of the buckets of durations, in seconds. An ADD takes some milliseconds; one that waits for the
/// agent takes seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// One label.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Verdict {
    verdict: String,
}

/// One label.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    outcome: String,
}

/// How a pod was repaired, and how that ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Repair {
    /// `repair`, `label`, `delete`
    pub r#type: &'static str,
    /// `success`, `skip`, `fail`
    pub result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Phase {
    verb: String,
    phase: String,
    result: String,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Binary and entry are where they belong.
    pub install_ready: Gauge,
    /// Files of the network configuration that were changed.
    pub conf_rewrites: Counter,
    /// The watch on the pods is alive.
    pub watch_up: Gauge,
    /// Failures of the watch.
    pub watch_failures: Counter,
    /// Pods that are attached and as they should be.
    pub pods_enrolled: Gauge,
    /// Pods that have a sidecar and are not redirected, though they should be.
    pub pods_missing: Gauge,
    /// Links that are gone, dead, or on something else.
    pub links_dead: Gauge,
    /// Repairs.
    pub repairs: Family<Repair, Counter>,
    /// Pods whose `livePolicy` was applied.
    pub policy_updates: Counter,
    /// Lines of the plugin that reached the agent.
    pub plugin_lines: Counter,
    connections: Family<Verdict, Counter>,
    guard_drops: Counter,
    outcomes: Family<Outcome, Counter>,
    durations: Family<Phase, Histogram>,
    seen: Mutex<Seen>,
}

/// What was read last, to count on from.
#[derive(Debug, Default)]
struct Seen {
    counters: HashMap<(u64, &'static str), u64>,
    outcomes: BTreeMap<String, u64>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix(PREFIX);
        let buckets: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Metrics {
            install_ready: Gauge::default(),
            conf_rewrites: Counter::default(),
            watch_up: Gauge::default(),
            watch_failures: Counter::default(),
            pods_enrolled: Gauge::default(),
            pods_missing: Gauge::default(),
            links_dead: Gauge::default(),
            repairs: Family::default(),
            policy_updates: Counter::default(),
            plugin_lines: Counter::default(),
            connections: Family::default(),
            guard_drops: Counter::default(),
            outcomes: Family::default(),
            durations: Family::new_with_constructor(buckets),
            seen: Mutex::default(),
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("agent", "The agent that answers here", version);
        registry.register(
            "install_ready",
            "Plugin and entry are in their places",
            self.install_ready.clone(),
        );
        registry.register(
            "conf_rewrites",
            "Files of network configuration changed",
            self.conf_rewrites.clone(),
        );
        registry.register("watch_up", "The watch on this node's pods is alive", self.watch_up.clone());
        registry.register("watch_failures", "Failures of the watch", self.watch_failures.clone());
        registry.register(
            "pods_enrolled",
            "Pods that are redirected as they should be",
            self.pods_enrolled.clone(),
        );
        let missing = "Pods with a sidecar that are not redirected, though they should be";
        registry.register("pods_not_enrolled", missing, self.pods_missing.clone());
        registry.register(
            "links_dead",
            "Links that are gone, dead or on something else",
            self.links_dead.clone(),
        );
        registry.register("repairs", "Repairs of pods", self.repairs.clone());
        registry.register("policy_updates", "Policies changed in running pods", self.policy_updates.clone());
        registry.register("plugin_lines", "Log lines received from the plugin", self.plugin_lines.clone());
        registry.register("connections", "Connections by verdict of the programs", self.connections.clone());
        registry.register(
            "guard_drops",
            "Packets around the sidecar that the guard caught",
            self.guard_drops.clone(),
        );
        registry.register("outcomes", "Calls of the plugin by outcome", self.outcomes.clone());
        let durations = "Time that calls of the plugin took, by phase";
        registry.register("plugin_duration_seconds", durations, self.durations.clone());
    }

    /// Takes the counters of a pod: `cookie` is its namespace's.
    pub fn count(&self, cookie: u64, event: Event, now: u64) {
        let mut seen = self.seen();
        let before = seen.counters.insert((cookie, event.label()), now).unwrap_or(0);
        // A namespace's cookie is never used again, so a smaller number means that the pod was attached
        // again.
        let more = if now >= before { now - before } else { now };
        if event.of_guard() {
            self.guard_drops.inc_by(more);
        }
        self.connections.get_or_create(&Verdict { verdict: event.label().to_owned() }).inc_by(more);
    }

    /// Forgets pods that are gone; what they counted stays counted.
    pub fn keep_pods(&self, alive: impl Fn(u64) -> bool) {
        self.seen().counters.retain(|(cookie, _), _| alive(*cookie));
    }

    /// Takes what the plugin has counted since the boot.
    pub fn take_outcomes(&self, now: &BTreeMap<String, u64>) {
        let mut seen = self.seen();
        for (outcome, count) in now {
            let before = seen.outcomes.insert(outcome.clone(), *count).unwrap_or(0);
            let counter = self.outcomes.get_or_create(&Outcome { outcome: outcome.clone() });
            counter.inc_by(count.saturating_sub(before));
        }
    }

    /// Takes how long one call of the plugin took.
    pub fn take_timing(&self, timing: &Timing) {
        for (phase, took) in &timing.phases {
            let labels =
                Phase { verb: timing.verb.clone(), phase: phase.clone(), result: timing.result.clone() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// The page, as OpenMetrics text.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut page, &self.registry);
        page
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn filled() -> Metrics {
        let metrics = Metrics::default();
        metrics.count(7, Event::OutboundRedirected, 10);
        metrics.take_outcomes(&BTreeMap::from([("enrolled".to_owned(), 3)]));
        let took = Duration::from_millis(3);
        let phases = vec![("total".to_owned(), took)];
        metrics.take_timing(&Timing { verb: "ADD".to_owned(), result: "enrolled".to_owned(), phases });
        metrics.repairs.get_or_create(&Repair { r#type: "repair", result: "success" }).inc();
        metrics
    }

    #[test]
    fn every_name_is_in_the_document_and_the_document_has_no_other() {
        let document = include_str!("../../docs/metrics.md");
        let row = |line: &&str| line.starts_with("| `redirect_cni_");
        let mut documented: Vec<&str> =
            document.lines().filter(row).filter_map(|line| line.split('`').nth(1)).collect();
        let page = filled().page();
        let mut shown: Vec<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect();
        documented.sort_unstable();
        shown.sort();
        assert_eq!(documented, shown);
        // A family without a member shows nothing, so each must have been given one above.
        for name in &shown {
            assert!(page.lines().any(|line| line.starts_with(name.as_str())), "{name} has no value: {page}");
        }
    }

    #[test]
    fn counters_only_go_up() {
        let metrics = filled();
        let value = || {
            let page = metrics.page();
            let line = page.lines().find(|line| line.contains("verdict=\"outbound_redirected\"")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        metrics.count(7, Event::OutboundRedirected, 15);
        assert_eq!(value(), 15);
        // The pod is gone, and another one comes.
        metrics.keep_pods(|_| false);
        metrics.count(8, Event::OutboundRedirected, 2);
        assert_eq!(value(), 17);
        // It is attached again, with counters from zero.
        metrics.count(8, Event::OutboundRedirected, 1);
        assert_eq!(value(), 18);
    }

    #[test]
    fn what_the_guard_catches_is_summed_and_nothing_else_is() {
        for event in Event::ALL {
            let metrics = Metrics::default();
            metrics.count(7, *event, 3);
            let page = metrics.page();
            let line = page.lines().find(|line| line.starts_with("redirect_cni_guard_drops_total ")).unwrap();
            let expected = if event.label().starts_with("guard_") { 3 } else { 0 };
            assert_eq!(line, format!("redirect_cni_guard_drops_total {expected}"), "{event:?}");
        }
    }
}
