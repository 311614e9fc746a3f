//! What the kernel and our processes have at one moment, and whether they have more and more of it.
//!
//! Memory of a machine is never still. So no two looks are compared: growth is the median of the slopes
//! between all pairs of looks (Theil and Sen), times the number of looks, which a few odd looks do not move.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use harness::{Node, Residue};

use crate::pods::{open_files, resident};

/// Slab caches that nothing but the network uses: they hold what connections and namespaces leave. Sockets in
/// TIME-WAIT are not among them: they go a minute after their connection.
const OF_NETWORK: [&str; 12] = [
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "MPTCP",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "sock_inode_cache",
    "net_namespace",
    "tcp_bind_bucket",
    "nf_conntrack",
    "skbuff_head_cache",
];

/// What must be exactly as before: names with numbers.
pub(super) type Exact = BTreeMap<String, usize>;

/// One look, taken while no pod comes, goes or connects.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) second: u64,
    pub(super) pods: usize,
    pub(super) connections: u64,
    pub(super) exact: Exact,
    /// Objects in use by slab cache; only those that the kernel cannot take back by itself.
    slab: BTreeMap<String, i64>,
    /// kB by the names of /proc/meminfo, and of the agent; and descriptors.
    kilobytes: BTreeMap<&'static str, i64>,
}

impl Look {
    pub(super) fn at(node: &Node, agent: u32, second: u64, pods: usize, connections: u64) -> Look {
        let slab = slab();
        let mut kilobytes = meminfo();
        kilobytes.insert("agent", i64::try_from(resident(agent)).unwrap_or(i64::MAX));
        kilobytes.insert("agent's files", i64::try_from(open_files(agent)).unwrap_or(i64::MAX));
        Look { second, pods, connections, exact: exact(node), slab, kilobytes }
    }

    /// A line of figures.
    pub(super) fn line(&self, agent: u32) -> String {
        let exact = |name: &str| self.exact.get(name).copied().unwrap_or(0);
        let kilobytes = |name: &str| self.kilobytes.get(name).copied().unwrap_or(0);
        format!(
            "figures: | {} | {} | {} | {} / {} / {} | {} | {} / {} | {} | {} | {} | {} |",
            self.second,
            self.pods,
            self.connections,
            exact("programs"),
            exact("maps"),
            exact("links"),
            self.exact
                .iter()
                .filter(|(name, _)| name.starts_with("map "))
                .map(|(_, number)| number)
                .sum::<usize>(),
            kilobytes("agent"),
            open_files(agent),
            kilobytes("SUnreclaim"),
            self.slab
                .iter()
                .filter(|(name, _)| OF_NETWORK.contains(&name.as_str()))
                .map(|(_, n)| n)
                .sum::<i64>(),
            kilobytes("Percpu"),
            kilobytes("VmallocUsed"),
        )
    }
}

/// The heading of the lines.
pub(super) const HEADING: [&str; 2] = [
    "figures: | s | pods | connections | programs / maps / links | entries | agent kB / files | slab kB | network objects | percpu kB | vmalloc kB |",
    "figures: |---:|---:|---:|---|---:|---|---:|---:|---:|---:|",
];

/// What can be counted one by one.
pub(super) fn exact(node: &Node) -> Exact {
    let now = Residue::now();
    let mut all: Exact = ["program", "map", "link", "mount", "process", "interface", "directory"]
        .map(|kind| (format!("{kind}s"), now.count(&format!("{kind} "))))
        .into();
    all.extend(node.map_entries().into_iter().map(|(name, entries)| (format!("map {name}"), entries)));
    all.insert("map GUARD".into(), node.guarded());
    all.insert("files below the state directory".into(), files_below(&node.state_dir()));
    all.insert("pins".into(), files_below(&node.bpffs().join("redirect-cni")));
    all
}

fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// Objects in use by cache, after each has given back what is empty.
fn slab() -> BTreeMap<String, i64> {
    let of_cache = |name: &str, file: &str| Path::new("/sys/kernel/slab").join(name).join(file);
    let text = fs::read_to_string("/proc/slabinfo").expect("root can read /proc/slabinfo");
    let names = text.lines().skip(2).filter_map(|line| line.split(' ').next());
    let kept = |name: &&str| {
        let reclaimed = fs::read_to_string(of_cache(name, "reclaim_account"));
        OF_NETWORK.contains(name) || reclaimed.is_ok_and(|text| text.trim() == "0")
    };
    let kept: Vec<&str> = names.filter(kept).collect();
    for name in &kept {
        // Not there, or not allowed: then the figure is a little too large.
        let _ = fs::write(of_cache(name, "shrink"), "1");
    }
    let text = fs::read_to_string("/proc/slabinfo").expect("root can read /proc/slabinfo");
    let objects = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, active) = (words.next()?, words.next()?.parse().ok()?);
        kept.contains(&name).then(|| (name.to_owned(), active))
    };
    text.lines().filter_map(objects).collect()
}

fn meminfo() -> BTreeMap<&'static str, i64> {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let value = |name: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some((name, line.trim().trim_end_matches(" kB").parse().ok()?))
    };
    ["SUnreclaim", "Percpu", "VmallocUsed"].into_iter().filter_map(value).collect()
}

/// By how much a value has grown over all looks: the median slope times the steps.
fn growth(values: &[i64]) -> i64 {
    let mut slopes: Vec<f64> = Vec::new();
    for (later, value) in values.iter().enumerate() {
        for (earlier, before) in values[..later].iter().enumerate() {
            slopes.push((value - before) as f64 / (later - earlier) as f64);
        }
    }
    slopes.sort_by(f64::total_cmp);
    let middle = |index: usize| slopes.get(index).copied().unwrap_or(0.0);
    // Of an even number, what lies between the two in the middle.
    let median = (middle(slopes.len().saturating_sub(1) / 2) + middle(slopes.len() / 2)) / 2.0;
    (median * values.len().saturating_sub(1) as f64).round() as i64
}

/// What has grown beyond its limit, each with its values; and a line for all that has grown at all.
pub(super) fn grown(looks: &[Look]) -> (Vec<String>, String) {
    let (first, last) = (looks.first().expect("looks"), looks.last().expect("looks"));
    let connections = i64::try_from(last.connections - first.connections).unwrap_or(i64::MAX);
    let (mut faults, mut all) = (Vec::new(), Vec::new());
    let mut judge = |name: String, values: Vec<i64>, limit: i64| {
        let grown = growth(&values);
        if grown != 0 {
            all.push(format!("{name} {grown:+}"));
        }
        if grown > limit {
            faults.push(format!("{name} has grown by {grown}, more than {limit}: {values:?}"));
        }
    };
    for name in last.slab.keys() {
        let values = looks.iter().map(|look| look.slab.get(name).copied().unwrap_or(0)).collect();
        let limit = if OF_NETWORK.contains(&name.as_str()) { 256 } else { (connections / 10).max(4096) };
        judge(format!("slab {name}"), values, limit);
    }
    // What is not kB is descriptors: of its connections some may be open a little longer.
    let limits = [
        ("agent", 4096),
        ("Percpu", 2048),
        ("VmallocUsed", 4096),
        ("SUnreclaim", 8192),
        ("agent's files", 3),
    ];
    for (name, limit) in limits {
        let values = looks.iter().map(|look| look.kilobytes.get(name).copied().unwrap_or(0)).collect();
        judge(name.to_owned(), values, limit);
    }
    (faults, all.join(", "))
}

#[test]
fn steady_growth_is_found_and_odd_looks_are_not() {
    assert_eq!(growth(&[100, 200, 300, 400, 500]), 400);
    assert_eq!(growth(&[100, 900, 100, 100, 100, 100]), 0);
    assert_eq!(growth(&[100, 100, 100, 100, 100, 900]), 0);
    assert_eq!(growth(&[500, 400, 450, 300]), -175);
    assert_eq!(growth(&[7]), 0);
}
