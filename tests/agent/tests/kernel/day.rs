//! A day in the life of a node, shortened: pods come and go, their annotations change, and the API server is
//! cut off again and again. Nothing grows, and nothing is left.
//!
//! `REDIRECT_DAY_PODS=2000` is the long form.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Kind};
use harness::chain::{Chain, Refusal};
use harness::{Errno, Family, Node, Pod, Process, Residue, kernel_test};
use serde_json::{Value, json};

use super::place::{Place, sandbox};
use super::{Other, World};
use crate::driver::{Agent, until, until_within};
use crate::pods::{open_files, resident};
use crate::shown::get;

/// So many pods live at one moment.
const ALIVE: usize = 8;
/// So often the node is looked at while no pod is on it.
const LOOKS: usize = 10;
/// The kubelet calls again when the plugin says "try again later".
const TRY_AGAIN_LATER: u64 = 11;
/// A pod may have to wait for the API server, and for the plugin's own patience.
const LONGEST: Duration = Duration::from_secs(60);
/// The collection of what belongs to pods that are gone comes once a minute, should a pod need it.
const COLLECTED: Duration = Duration::from_secs(90);

fn pods() -> usize {
    std::env::var("REDIRECT_DAY_PODS").ok().and_then(|number| number.parse().ok()).unwrap_or(150)
}

/// A pod that was added, and its application.
struct Alive {
    pod: Pod,
    app: Process,
}

/// What the runtime, the kubelet and the API server do on this node.
struct Day<'a> {
    world: &'a World<'a>,
    chain: Chain,
    other: Other,
    /// How often the plugin answered "try again later".
    again: u32,
    longest: Duration,
}

impl Day<'_> {
    /// The pod comes: the API server knows it, the runtime adds it, its application starts.
    fn come(&mut self, number: usize) -> Alive {
        let pod = self.world.node.pod(&format!("p{number}"));
        self.world.tell(&pod, |object| object["status"]["phase"] = json!("Pending"));
        let begun = Instant::now();
        while let Err(error) = self.chain.add(&sandbox(&pod)) {
            let code = error.downcast_ref::<Refusal>().map(|refusal| refusal.code);
            assert_eq!(code, Some(TRY_AGAIN_LATER), "pod {number}: {error:#}");
            assert!(begun.elapsed() < LONGEST, "pod {number} waits: {error:#}");
            self.again += 1;
        }
        self.longest = self.longest.max(begun.elapsed());
        let app = pod.app();
        self.world.tell(&pod, |_| {});
        let answer = app.connect(self.other.pod.at(Family::ALL[number % 2], 8080)).map(drop);
        assert_eq!(answer, Err(Errno::ECONNREFUSED), "pod {number} is open");
        Alive { pod, app }
    }

    /// The annotations of a running pod change.
    fn change(&self, alive: &Alive, number: usize) {
        self.world.api.store().change(Kind::PODS, "shop", alive.pod.name(), |object| {
            object["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] =
                json!((9000 + number % 1000).to_string());
        });
    }

    /// The pod goes: first its processes, then its network, then its object.
    fn go(&self, alive: Alive) {
        let Alive { pod, app } = alive;
        drop(app);
        self.chain.del(&sandbox(&pod), &Value::Null).expect("DEL never fails");
        self.world.api.store().remove(Kind::PODS, "shop", pod.name());
    }
}

/// What the node has while no pod of the day is on it.
#[derive(Debug)]
struct Look {
    pods: usize,
    memory: u64,
    files: usize,
    kernel: usize,
    state: usize,
}

impl Look {
    fn at(node: &Node, agent: &Agent, pods: usize) -> Look {
        // DEL has removed all there was. What an agent attaches beside the plugin would be collected later.
        assert_eq!(node.attached(), Vec::<String>::new(), "after {pods} pods");
        for (map, entries) in node.map_entries() {
            until_within(COLLECTED, &format!("{map} has no entry"), || {
                entries == 0 || node.map_entries().iter().all(|(name, left)| *name != map || *left == 0)
            });
        }
        let (memory, files) = (resident(agent.pid()), open_files(agent.pid()));
        Look { pods, memory, files, kernel: in_kernel(), state: files_below(&node.state_dir()) }
    }
}

/// Programs, maps and links of ours that the kernel has.
fn in_kernel() -> usize {
    ["program ", "map ", "link "].iter().map(|kind| Residue::now().count(kind)).sum()
}

fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// The API server is cut off, forgets its history, throttles, and wants another token, one after another.
fn unkind(api: &ApiServer, dir: &Path, every: Duration, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    let mut next = Instant::now() + every;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        if Instant::now() < next {
            continue;
        }
        match rounds % 4 {
            0 => {
                api.away();
                std::thread::sleep(Duration::from_secs(1));
                api.back();
            }
            1 => {
                api.store().compact();
                api.cut();
            }
            2 => {
                api.throttle(3);
                api.cut();
            }
            _ => {
                let token = format!("secret-{rounds}");
                api.let_in(&[&token]);
                api.cut();
                std::thread::sleep(Duration::from_millis(500));
                fs::write(dir.join("token"), &token).expect("the token");
            }
        }
        rounds += 1;
        next = Instant::now() + every;
    }
    rounds
}

#[test]
fn pods_come_and_go_and_leave_memory_files_and_the_kernel_as_they_were() {
    kernel_test(|node| {
        let world = World::new(node);
        let place = Place::new(node.dir());
        let socket = node.dir().join("agent.sock");
        let keys = json!({ "agentSocket": socket, "bpffsRoot": node.bpffs(), "stateDir": node.state_dir() });
        let arguments = place.arguments(&keys, &["--repair-pods", "--live-policy"]);
        let agent = world.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let chain = place.chain();
        until("the agent is ready", || get(world.address, "/readyz").0 == 200);
        let other = Other::new(node);
        let mut day = Day { world: &world, chain, other, again: 0, longest: Duration::ZERO };
        let all = pods();
        let every = Duration::from_secs(if all > 500 { 20 } else { 2 });
        let stop = AtomicBool::new(false);
        let (api, dir) = (&world.api, node.dir());
        let begun = Instant::now();
        let (looks, unkind) = std::thread::scope(|scope| {
            let unkind = scope.spawn(|| unkind(api, dir, every, &stop));
            let stop = Stop(&stop);
            let looks = a_day(node, &agent, &mut day, all);
            drop(stop);
            (looks, unkind.join().unwrap())
        });
        report(&day, &looks, unkind, begun.elapsed());
        flat(&looks, &agent);
    });
}

/// Ends the unkindness, also where the day ends early.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_day(node: &Node, agent: &Agent, day: &mut Day<'_>, all: usize) -> Vec<Look> {
    let mut looks = Vec::new();
    let mut alive = VecDeque::new();
    for number in 0..all {
        let came = day.come(number);
        day.change(&came, number);
        alive.push_back(came);
        if alive.len() > ALIVE {
            day.go(alive.pop_front().expect("one is there"));
        }
        if (number + 1).is_multiple_of(all / LOOKS) {
            alive.drain(..).for_each(|last| day.go(last));
            let (status, _) = get(day.world.address, "/metrics");
            assert_eq!(status, 200);
            looks.push(Look::at(node, agent, number + 1));
        }
    }
    looks
}

fn report(day: &Day<'_>, looks: &[Look], unkind: u32, took: Duration) {
    for Look { pods, memory, files, kernel, state } in looks {
        println!(
            "{pods} pods: agent {memory} kB, {files} descriptors; kernel {kernel} objects; {state} files"
        );
    }
    let (again, longest) = (day.again, day.longest);
    println!(
        "{unkind} times unkind; {again} times later; the longest start took {longest:?}; all took {took:?}"
    );
}

/// The first two looks are the warm-up.
fn flat(looks: &[Look], agent: &Agent) {
    let (first, last) = (&looks[1], looks.last().expect("looks"));
    until("connections and sockets are closed", || open_files(agent.pid()) <= first.files + 2);
    // A look may come while a table is read: what counts is that the memory is given back.
    until_within(COLLECTED, &format!("the agent is as small as it was: {looks:#?}"), || {
        resident(agent.pid()) <= first.memory + 3072
    });
    assert_eq!(last.state, first.state, "{looks:#?}");
    until_within(COLLECTED, "the kernel has no more than before", || in_kernel() <= first.kernel);
}
