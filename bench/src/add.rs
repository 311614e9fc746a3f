//! Section 4: what it costs to put a pod under redirection and to let it go, against the commands that
//! Istio's plugin runs for the same pod.

use std::path::Path;
use std::sync::Barrier;

use anyhow::{Context as _, Result};
use harness::{MachineLock, Node, Pod, binary};

use crate::load;
use crate::plugin::{self, Cost};
use crate::results::{Measure, Results, Unit};
use crate::rules::{self, Backend};
use crate::scale::Scale;

/// A plugin written in Go, of the same size and without work: only its start is measured.
const GO_PLUGINS: [&str; 2] = ["/usr/lib/cni/loopback", "/opt/cni/bin/loopback"];
/// The variants' names.
pub(crate) const ADD: &str = "redirect-cni ADD";
pub(crate) const DEL: &str = "redirect-cni DEL";
const STARTS: &str = "redirect-cni VERSION";
pub(crate) const UNGUARDED: &str = "redirect-cni ADD, no guard";
pub(crate) const LEGACY: &str = "iptables-legacy commands";
pub(crate) const NFT: &str = "iptables-nft commands";

/// Measures single calls, bursts, and the start of the process.
pub(crate) fn run(
    lock: &MachineLock,
    node: &Node,
    pods: &[Pod],
    scale: &Scale,
    results: &mut Results,
) -> Result<()> {
    one_by_one(node, &pods[..scale.adds], results)?;
    at_once(node, &pods[scale.adds..scale.adds + scale.burst], scale.bursts, results)?;
    first(lock, scale.nodes, results)?;
    versions(scale.versions, results)
}

/// Every pod once, by each way in turn; the pods' namespaces are new, and one backend's rules do not disturb
/// another's.
fn one_by_one(node: &Node, pods: &[Pod], results: &mut Results) -> Result<()> {
    let mut costs: [Vec<Cost>; 5] = Default::default();
    for pod in pods {
        costs[0].push(plugin::add(node, pod, &[])?);
        costs[1].push(plugin::del(node, pod)?);
        costs[2].push(commands(pod, Backend::Legacy)?);
        costs[3].push(commands(pod, Backend::Nft)?);
        costs[4].push(plugin::add_unguarded(node, pod, &[])?);
        plugin::del(node, pod)?;
    }
    let labels = [ADD, DEL, LEGACY, NFT, UNGUARDED];
    for (id, title, read) in [
        ("add-wall", "One pod at a time: elapsed", (|c| c.wall) as fn(&Cost) -> f64),
        ("add-cpu", "One pod at a time: CPU time", |c| c.cpu),
    ] {
        let series =
            labels.iter().zip(&costs).map(|(label, costs)| (*label, costs.iter().map(read).collect()));
        results.add(Measure::new(id, title, Unit::Millis, series));
    }
    Ok(())
}

/// All commands for one pod, run from inside its namespace.
fn commands(pod: &Pod, backend: Backend) -> Result<Cost> {
    let steps = rules::steps(backend);
    pod.netns().run(|| {
        steps
            .iter()
            .try_fold(Cost::default(), |sum, step| Ok(sum.and(Cost::of(&mut step.command(pod.netns())?)?)))
    })
}

/// All pods at the same moment, several times; with iptables once, because the rules stay. VERSION says what
/// it takes to start so many processes at once.
fn at_once(node: &Node, pods: &[Pod], bursts: usize, results: &mut Results) -> Result<()> {
    let calls = |verb| {
        let job = |mut command: std::process::Command| move || Cost::of(&mut command);
        pods.iter().map(|pod| Ok(job(plugin::call(node, pod, verb, &[])?))).collect::<Result<Vec<_>>>()
    };
    let (mut adds, mut dels, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bursts {
        starts.extend(burst(calls("VERSION")?)?);
        adds.extend(burst(calls("ADD")?)?);
        dels.extend(burst(calls("DEL")?)?);
    }
    let rules = |backend| burst(pods.iter().map(|pod| move || commands(pod, backend)).collect());
    let (legacy, nft) = (rules(Backend::Legacy)?, rules(Backend::Nft)?);
    let series = [(ADD, adds), (DEL, dels), (STARTS, starts), (LEGACY, legacy), (NFT, nft)];
    let title = format!("{} pods at once: elapsed until a pod is done", pods.len());
    results.add(Measure::new("burst-wall", &title, Unit::Millis, series));
    Ok(())
}

/// Milliseconds from the common start to the end of each job.
fn burst<J: FnOnce() -> Result<Cost> + Send>(jobs: Vec<J>) -> Result<Vec<f64>> {
    let barrier = Barrier::new(jobs.len());
    std::thread::scope(|scope| {
        let run = |job: J| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                let start = load::now();
                job().map(|_| (start, load::now()))
            })
        };
        let threads: Vec<_> = jobs.into_iter().map(run).collect();
        let joined = threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?);
        let spans: Vec<_> = joined.collect::<Result<_>>()?;
        let start = spans.iter().map(|(start, _)| *start).min().unwrap_or_default();
        Ok(spans.iter().map(|(_, end)| (*end - start).as_secs_f64() * 1e3).collect())
    })
}

/// The first ADD after a boot, which loads the programs: each time on a node of its own.
fn first(lock: &MachineLock, nodes: usize, results: &mut Results) -> Result<()> {
    let mut walls = Vec::new();
    for _ in 0..nodes {
        let node = Node::new(lock);
        let pod = node.pod("first");
        walls.push(plugin::add(&node, &pod, &[])?.wall);
        plugin::del(&node, &pod)?;
    }
    let title = "First ADD after a boot: elapsed, with loading the programs";
    results.add(Measure::new("first-wall", title, Unit::Millis, [(ADD, walls)]));
    Ok(())
}

fn versions(count: usize, results: &mut Results) -> Result<()> {
    let ours = binary("redirect-cni");
    let go = GO_PLUGINS.iter().map(Path::new).find(|path| path.exists());
    let go = go.context("no CNI plugin written in Go: run `cargo xtask setup mesh`")?;
    let (mut our_times, mut go_times) = (Vec::new(), Vec::new());
    for _ in 0..count {
        our_times.push(plugin::version(&ours)?.wall);
        go_times.push(plugin::version(go)?.wall);
    }
    let series = [("redirect-cni", our_times), ("loopback (Go)", go_times)];
    results.add(Measure::new("version-wall", "VERSION, start to exit", Unit::Millis, series));
    Ok(())
}
