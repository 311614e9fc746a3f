//! Pods that differ in how they are redirected, and another that dials them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use harness::{Family, Node, Pod};
use ipnet::IpNet;

use crate::plugin;
use crate::rules::{self, Backend};
use crate::worker::{Order, Timing, Worker};

/// How a pod is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Not at all: clients dial the sidecar themselves.
    None,
    /// By Istio's rules.
    Iptables(Backend),
    /// By the rules that Istio loads with `nft` where `nativeNftables` is on.
    Nftables,
    /// By the programs of this project.
    Ours,
    /// The same without the guard's filters.
    Unguarded,
}

impl Mode {
    pub(crate) const ALL: [Mode; 6] = [
        Mode::None,
        Mode::Iptables(Backend::Legacy),
        Mode::Iptables(Backend::Nft),
        Mode::Nftables,
        Mode::Ours,
        Mode::Unguarded,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Mode::None => "not redirected",
            Mode::Iptables(Backend::Legacy) => "iptables-legacy",
            Mode::Iptables(Backend::Nft) => "iptables-nft",
            Mode::Nftables => "nftables, native",
            Mode::Ours => "redirect-cni",
            Mode::Unguarded => "redirect-cni, no guard",
        }
    }

    /// Whether every connection of the pod is in the kernel's table of connections.
    pub(crate) const fn tracks_connections(self) -> bool {
        matches!(self, Mode::Iptables(_) | Mode::Nftables)
    }

    /// A word for names of pods.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Iptables(backend) => backend.name(),
            Mode::Nftables => "native",
            Mode::Ours => "ours",
            Mode::Unguarded => "unguarded",
        }
    }
}

/// The two ways in which a connection is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the pod's application over loopback to its sidecar.
    Outbound,
    /// From another pod over veth pairs and a bridge to the sidecar.
    Inbound,
}

/// A port of an application that is never captured.
pub(crate) const LOCAL_PORT: u16 = 8080;
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const APP_PORT: u16 = 80;

/// A pod and the worker in it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) mode: Mode,
    // Ends before its pod.
    worker: Worker,
    pub(crate) pod: Pod,
    peer: [IpAddr; 2],
}

impl Stage {
    /// Makes a pod, redirects it, and starts a worker that listens where a sidecar would.
    ///
    /// `excluded` are ranges of destinations that are left alone.
    pub(crate) fn new(node: &Node, name: &str, mode: Mode, peer: &Pod, excluded: &[IpNet]) -> Result<Stage> {
        let pod = node.pod(name);
        match mode {
            Mode::None => {}
            Mode::Iptables(backend) => rules::apply(pod.netns(), backend, excluded)?,
            Mode::Nftables => rules::apply_native(pod.netns())?,
            Mode::Ours => drop(plugin::add(node, &pod, excluded)?),
            Mode::Unguarded => drop(plugin::add_unguarded(node, &pod, excluded)?),
        }
        if mode.tracks_connections() {
            // Else hundreds of thousands of closed connections stay in the table, for ten seconds each.
            pod.netns().sysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "1");
        }
        let worker = Worker::start(&pod, Some(peer))?;
        let mut stage = Stage { mode, worker, pod, peer: Family::ALL.map(|family| peer.ip(family)) };
        for port in [OUTBOUND_PORT, INBOUND_PORT] {
            for ip in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
                let _: Timing = stage.worker.run(&Order::Listen(SocketAddr::new(ip, port)))?;
            }
        }
        Ok(stage)
    }

    /// Where a client dials, and the number of the listener that gets the connection.
    pub(crate) fn route(&self, direction: Direction, family: Family) -> (SocketAddr, usize) {
        let localhost: IpAddr =
            if family == Family::V6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let redirected = self.mode != Mode::None;
        let to = match direction {
            Direction::Outbound if redirected => (self.peer[usize::from(family == Family::V6)], APP_PORT),
            Direction::Outbound => (localhost, OUTBOUND_PORT),
            Direction::Inbound => (self.pod.ip(family), if redirected { APP_PORT } else { INBOUND_PORT }),
        };
        let listener = if direction == Direction::Outbound { 0 } else { 2 };
        (to.into(), listener + usize::from(family == Family::V6))
    }

    /// Whole connections.
    pub(crate) fn set_up(&mut self, direction: Direction, family: Family, count: usize) -> Result<Timing> {
        let (to, listener) = self.route(direction, family);
        self.run(&Order::SetUp { to: vec![to], listener, count, foreign: direction == Direction::Inbound })
    }

    /// Opens one connection to stay, after checking that it is redirected as it should be.
    pub(crate) fn open(&mut self, direction: Direction, family: Family) -> Result<()> {
        let (to, listener) = self.route(direction, family);
        let order = Order::Open { to, listener, foreign: direction == Direction::Inbound };
        let original: Option<SocketAddr> = self.worker.run(&order)?;
        let expected = (self.mode != Mode::None).then_some(to);
        ensure!(
            original == expected,
            "{}: SO_ORIGINAL_DST says {original:?} for a connection to {to}, should be {expected:?}",
            self.mode.label()
        );
        Ok(())
    }

    /// Runs any order.
    pub(crate) fn run(&mut self, order: &Order) -> Result<Timing> {
        self.worker.run(order)
    }
}

/// A worker that serves at 127.0.0.1 as an application that is not captured.
pub(crate) fn listening_worker(pod: &Pod) -> Result<Worker> {
    let mut worker = Worker::start(pod, None)?;
    let _: Timing = worker.run(&Order::Listen((Ipv4Addr::LOCALHOST, LOCAL_PORT).into()))?;
    Ok(worker)
}

/// All modes.
pub(crate) fn stages(node: &Node, peer: &Pod) -> Result<Vec<Stage>> {
    Mode::ALL
        .iter()
        .map(|mode| {
            Stage::new(node, mode.word(), *mode, peer, &[])
                .with_context(|| format!("setting up {}", mode.label()))
        })
        .collect()
}

/// Runs `measure` for every stage, `rounds` times over, each round beginning with another stage: what
/// disturbs the machine for a while then disturbs all modes alike. The result is indexed by mode, then by
/// round.
pub(crate) fn interleaved<T>(
    stages: &mut [Stage],
    rounds: usize,
    mut measure: impl FnMut(&mut Stage) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut results: Vec<Vec<T>> = stages.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..rounds {
        for step in 0..stages.len() {
            let index = (round + step) % stages.len();
            results[index].push(measure(&mut stages[index])?);
        }
    }
    Ok(results)
}
