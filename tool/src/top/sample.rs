//! One look at counters and programs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use redirect_common::Event;
use redirect_user::attach::tables::Tables;
use redirect_user::inspect;
use redirect_user::kernel::filter::Filter;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::pins;
use redirect_user::node::Node;

use crate::output;

/// Groups of events, as columns: what an operator thinks of as one verdict.
pub(super) const COLUMNS: [(&str, &[Event]); 6] = [
    ("OUT", &[Event::OutboundRedirected, Event::SelfCallRedirected]),
    ("IN", &[Event::InboundRedirected]),
    ("DNS", &[Event::DnsRedirected]),
    (
        "DIRECT",
        &[
            Event::ProxyDirect,
            Event::LoopbackDirect,
            Event::ExcludedDirect,
            Event::UnmatchedDirect,
            Event::InboundDirect,
        ],
    ),
    (
        "REFUSED",
        &[
            Event::NoListener,
            Event::Unreachable,
            Event::NoStorage,
            Event::ConfigChanged,
            Event::DnsRefused,
            Event::InboundRefused,
        ],
    ),
    ("DROPPED", &Event::GUARD),
];

/// What a program has done since the statistics were switched on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) time: Duration,
}

/// A moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    /// By cookie: the pod's name, and the sums of [`COLUMNS`].
    pub(super) pods: BTreeMap<u64, (String, [u64; COLUMNS.len()])>,
    /// By the program's name, in the order of the hooks.
    pub(super) programs: Vec<(&'static str, Runs)>,
}

impl Sample {
    pub(super) fn take(node: &Node) -> Result<Sample> {
        let mut pods = BTreeMap::new();
        let attachments = inspect::list(node)?;
        if !attachments.is_empty() {
            let tables = Tables::open(node)?;
            for pod in attachments {
                let counters = tables.counters(pod.cookie)?;
                let sum = |events: &[Event]| {
                    counters.iter().filter(|(event, _)| events.contains(event)).map(|(_, count)| count).sum()
                };
                let sums = COLUMNS.map(|(_, events)| sum(events));
                let name = match &pod.pod {
                    Some(_) => output::pod_name(&pod),
                    None => pod.id.container_id.chars().take(13).collect(),
                };
                pods.insert(pod.cookie, (name, sums));
            }
        }
        Ok(Sample { at: Instant::now(), pods, programs: programs(node) })
    }
}

fn programs(node: &Node) -> Vec<(&'static str, Runs)> {
    let pins = pins::current(node);
    let hooks = Hook::ALL.iter().map(|hook| (hook.name(), pins.program(*hook)));
    let filters = Filter::ALL.iter().map(|filter| (filter.name(), pins.filter(*filter)));
    let runs = |(name, path): (&'static str, std::path::PathBuf)| {
        let info = aya::programs::ProgramInfo::from_pin(path).ok()?;
        Some((name, Runs { count: info.run_count(), time: info.run_time() }))
    };
    hooks.chain(filters).filter_map(runs).collect()
}
