//! How much a run measures.

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Scale {
    /// How often everything is repeated.
    pub(crate) rounds: usize,
    /// Connections of one measurement.
    pub(crate) connections: usize,
    /// Round trips of one measurement.
    pub(crate) round_trips: usize,
    /// Pieces of 64 KiB of one measurement.
    pub(crate) chunks: usize,
    /// System calls of one measurement.
    pub(crate) calls: usize,
    /// Repetitions of a load by wrk.
    pub(crate) loads: usize,
    /// Seconds of one load by wrk.
    pub(crate) seconds: u64,
    /// Pods that are added one by one.
    pub(crate) adds: usize,
    /// Pods that are added at once.
    pub(crate) burst: usize,
    /// Repetitions of that.
    pub(crate) bursts: usize,
    /// Nodes whose first ADD is measured.
    pub(crate) nodes: usize,
    /// Calls of VERSION.
    pub(crate) versions: usize,
    /// Numbers of enrolled pods.
    pub(crate) fleet: &'static [usize],
    /// Numbers of excluded ranges.
    pub(crate) ranges: &'static [usize],
    /// Numbers of destinations that a pod dials.
    pub(crate) destinations: &'static [usize],
    /// Open connections.
    pub(crate) open: usize,
}

/// What the figures in the documents are made with.
pub(crate) const FULL: Scale = Scale {
    rounds: 60,
    connections: 400,
    round_trips: 2000,
    chunks: 400,
    calls: 20_000,
    loads: 7,
    seconds: 1,
    adds: 60,
    burst: 110,
    bursts: 5,
    nodes: 15,
    versions: 200,
    fleet: &[1, 50, 110, 175, 250],
    ranges: &[0, 10, 100, 1000, 10_000],
    destinations: &[1, 100, 1000, 5000, 10_000, 30_000],
    open: 100_800,
};

/// Shows that everything works; its numbers say little.
pub(crate) const QUICK: Scale = Scale {
    rounds: 4,
    connections: 60,
    round_trips: 100,
    chunks: 20,
    calls: 500,
    loads: 1,
    adds: 3,
    burst: 10,
    bursts: 1,
    nodes: 2,
    versions: 10,
    fleet: &[1, 12],
    ranges: &[0, 100],
    destinations: &[1, 100],
    open: 800,
    ..FULL
};
