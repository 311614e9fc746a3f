//! Section 5: what grows with the number of pods, of excluded ranges and of open connections.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use harness::{Event, Family, Node, Pod};
use ipnet::{IpNet, Ipv4Net};

use crate::memory::Memory;
use crate::plugin;
use crate::results::{Measure, Results, Unit};
use crate::rules::Backend;
use crate::scale::Scale;
use crate::scene::{Direction, Mode, Stage, interleaved};
use crate::worker::{Order, Timing, Worker};

/// Open connections of one worker: two sockets each, and 20,000 descriptors are all that some hosts allow a
/// process.
const PER_WORKER: usize = 8400;

/// More and more enrolled pods; the connection is made in the pod that was enrolled first.
pub(crate) fn pods(
    node: &Node,
    stages: &mut [Stage],
    fleet: &[Pod],
    scale: &Scale,
    results: &mut Results,
) -> Result<()> {
    let (mut adds, mut connects, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let mut enrolled = 0;
    let mut memory = Vec::new();
    for count in scale.fleet {
        let mut walls = Vec::new();
        while enrolled < *count {
            let wall = plugin::add(node, &fleet[enrolled], &[])?.wall;
            enrolled += 1;
            if *count - enrolled < 10 {
                walls.push(wall);
            }
        }
        memory.push((*count, Memory::now()?));
        adds.push((count.to_string(), walls));
        // The unredirected pod runs along, to tell growth from the machine's mood.
        let mut both: Vec<_> = stages.iter_mut().filter(|stage| !stage.mode.tracks_connections()).collect();
        let mut rounds = Vec::new();
        for _ in 0..scale.rounds {
            let none = both[0].set_up(Direction::Outbound, Family::V4, scale.connections)?.whole[0];
            rounds.push((none, both[1].set_up(Direction::Outbound, Family::V4, scale.connections)?.whole[0]));
        }
        connects.push((count.to_string(), rounds.iter().map(|(_, ours)| ours / 1e3).collect()));
        calls.push((count.to_string(), rounds.iter().map(|(none, ours)| (ours - none) / 1e3).collect()));
    }
    for pod in &fleet[..enrolled] {
        plugin::del(node, pod)?;
    }
    results.add(Measure::new("pods-add", "ADD by pods enrolled on the node", Unit::Millis, adds));
    results.add(Measure::new("pods-connect", "Outbound connection by pods enrolled", Unit::Micros, connects));
    results.add(Measure::new(
        "pods-added",
        "Added to the unredirected pod by pods enrolled",
        Unit::Micros,
        calls,
    ));
    report_memory(&memory, results);
    Ok(())
}

/// The first entry is the node with next to no pods.
fn report_memory(memory: &[(usize, Memory)], results: &mut Results) {
    let [(few, first), .., (many, last)] = memory else { return };
    let per_pod = |read: fn(&Memory) -> f64| (read(last) - read(first)) / (many - few) as f64;
    let series = [
        ("maps", vec![per_pod(|m| m.maps)]),
        ("programs", vec![per_pod(|m| m.programs)]),
        ("slab, per-CPU and vmalloc, all causes", vec![per_pod(|m| m.kernel)]),
    ];
    results.add(Measure::new("pods-memory", "Kernel memory per enrolled pod", Unit::Kibibytes, series));
    let fixed = [("maps", vec![first.maps]), ("programs", vec![first.programs])];
    results.add(Measure::new("node-memory", "Kernel memory per node", Unit::Kibibytes, fixed));
}

/// More and more excluded ranges, none of which is dialled.
pub(crate) fn ranges(node: &Node, peer: &Pod, scale: &Scale, results: &mut Results) -> Result<()> {
    for mode in [Mode::Ours, Mode::Iptables(Backend::Legacy), Mode::Iptables(Backend::Nft)] {
        let mut stages: Vec<Stage> = scale
            .ranges
            .iter()
            .map(|count| {
                let name = format!("ranges-{}-{count}", mode.word());
                Stage::new(node, &name, mode, peer, &some_ranges(*count))
                    .with_context(|| format!("{count} ranges"))
            })
            .collect::<Result<_>>()?;
        for stage in &mut stages {
            stage.open(Direction::Outbound, Family::V4)?;
        }
        let times = interleaved(&mut stages, scale.rounds, |stage| {
            Ok(stage.set_up(Direction::Outbound, Family::V4, scale.connections / 4)?.whole[0] / 1e3)
        })?;
        let title = format!("Outbound connection by excluded ranges, {}", mode.label());
        let labels = scale.ranges.iter().map(ToString::to_string);
        results.add(Measure::new(
            &format!("ranges-{}", mode.word()),
            &title,
            Unit::Micros,
            labels.zip(times),
        ));
        if mode == Mode::Ours {
            stages.iter().try_for_each(|stage| plugin::del(node, &stage.pod).map(drop))?;
        }
    }
    Ok(())
}

/// Networks of 256 addresses, none of which is the peer's.
fn some_ranges(count: usize) -> Vec<IpNet> {
    (0..count as u32)
        .map(|index| Ipv4Net::new_assert(Ipv4Addr::from(0x1400_0000 + (index << 8)), 24).into())
        .collect()
}

/// More and more destinations that pods have dialled. Each takes a slot of its pod, as long as there is one;
/// when two destinations meet in a slot, the second goes the longer way.
pub(crate) fn destinations(node: &Node, peer: &Pod, scale: &Scale, results: &mut Results) -> Result<()> {
    let mut stage = Stage::new(node, "destinations", Mode::Ours, peer, &[])?;
    let (_, listener) = stage.route(Direction::Outbound, Family::V4);
    let spare = node.pod("spare");
    let (mut connects, mut dels, mut detours) = (Vec::new(), Vec::new(), Vec::new());
    for count in scale.destinations {
        let all: Vec<_> = (0..*count as u32)
            .map(|index| SocketAddr::from((Ipv4Addr::from(0xcb00_0000 + index * 257), 80)))
            .collect();
        dial_all(&mut stage, &all, listener)?;
        let step = (*count / scale.connections).max(1);
        let to = all.iter().copied().step_by(step).collect();
        let some = Order::SetUp { to, listener, count: scale.connections, foreign: false };
        let (mut whole, mut del) = (Vec::new(), Vec::new());
        let before = node.count(&stage.pod, Event::HandoffTaken);
        dial_all(&mut stage, &all, listener)?;
        let share = (node.count(&stage.pod, Event::HandoffTaken) - before) as f64 / *count as f64;
        detours.push((count.to_string(), vec![share * 100.0]));
        for _ in 0..scale.rounds {
            whole.push(stage.run(&some)?.whole[0] / 1e3);
        }
        for _ in 0..scale.rounds.min(10) {
            plugin::add(node, &spare, &[])?;
            del.push(plugin::del(node, &spare)?.wall);
        }
        connects.push((count.to_string(), whole));
        dels.push((count.to_string(), del));
    }
    plugin::del(node, &stage.pod)?;
    results.add(Measure::new(
        "destinations-connect",
        "Outbound connection by destinations in use",
        Unit::Micros,
        connects,
    ));
    results.add(Measure::new(
        "destinations-detour",
        "Connections that take the detour, by destinations in use",
        Unit::Percent,
        detours,
    ));
    results.add(Measure::new(
        "destinations-del",
        "DEL of another pod by destinations in use",
        Unit::Millis,
        dels,
    ));
    Ok(())
}

/// Dials each destination once, not all in one order: a worker makes its sockets before it begins.
fn dial_all(stage: &mut Stage, to: &[SocketAddr], listener: usize) -> Result<()> {
    for some in to.chunks(PER_WORKER) {
        stage.run(&Order::SetUp { to: some.to_vec(), listener, count: some.len(), foreign: false })?;
    }
    Ok(())
}

/// More and more open connections on the node, redirected ones, while others are set up.
pub(crate) fn open_connections(
    node: &Node,
    stages: &mut [Stage],
    scale: &Scale,
    results: &mut Results,
) -> Result<()> {
    let mut holders: Vec<(Worker, Pod)> = Vec::new();
    let (mut costs, mut added) = (Vec::new(), Vec::new());
    for target in [0, scale.open / 2, scale.open] {
        let mut open = holders.len() * PER_WORKER.min(scale.open);
        while open < target {
            let pod = node.pod(&format!("holder-{}", holders.len()));
            plugin::add(node, &pod, &[])?;
            let worker = hold(&pod, PER_WORKER.min(scale.open))?;
            open += PER_WORKER.min(scale.open);
            holders.push((worker, pod));
        }
        let mut rounds = Vec::new();
        for _ in 0..scale.rounds {
            let mut of = |mode| {
                let stage =
                    stages.iter_mut().find(|stage| stage.mode == mode).context("a stage is missing")?;
                anyhow::Ok(stage.set_up(Direction::Outbound, Family::V4, scale.connections)?.whole[0] / 1e3)
            };
            rounds.push((of(Mode::None)?, of(Mode::Ours)?));
        }
        costs.push((open.to_string(), rounds.iter().map(|(_, ours)| *ours).collect()));
        added.push((open.to_string(), rounds.iter().map(|(none, ours)| ours - none).collect()));
    }
    for (worker, pod) in holders {
        drop(worker);
        plugin::del(node, &pod)?;
    }
    results.add(Measure::new(
        "open-connect",
        "Outbound connection by redirected connections open",
        Unit::Micros,
        costs,
    ));
    results.add(Measure::new(
        "open-added",
        "Added to the unredirected pod by connections open",
        Unit::Micros,
        added,
    ));
    Ok(())
}

/// Opens connections to eight destinations; the worker checks the original destination of each.
fn hold(pod: &Pod, count: usize) -> Result<Worker> {
    let mut worker = Worker::start(pod, None)?;
    let _: Timing = worker.run(&Order::Listen((Ipv4Addr::UNSPECIFIED, 15001).into()))?;
    let to = (1..=8).map(|host| SocketAddr::from((Ipv4Addr::new(198, 51, 100, host), 80))).collect();
    let _: Timing = worker.run(&Order::Hold { to, listener: 0, count })?;
    Ok(worker)
}
