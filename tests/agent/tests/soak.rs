//! A node under use for minutes or hours: pods come and go, connections are made in every way, policies
//! change, the agent is killed and programs are upgraded. At the end the node has what it had at the
//! beginning, and every connection was counted as what it was.
//!
//! `REDIRECT_SOAK_MINUTES` says how long (3 unless it is set): `cargo xtask test soak --minutes N`.

mod look;
mod pods;
mod traffic;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::chain::Chain;
use harness::cli::Outcome;
use harness::kernel_test;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redirect_common::ABI_VERSION;
use redirect_user::kernel::pins::ABI_VARIABLE;
use serde_json::{Value, json};

use self::look::{HEADING, Look, exact, grown};
use self::pods::{Coming, Moody};
use self::traffic::{PATIENCE, Traffic};
use crate::driver::Agent;
use crate::kernel::place::Place;
use crate::kernel::{World, stamp};
use crate::shown::get;

/// So many looks are taken.
const LOOKS: u32 = 9;

fn minutes() -> f64 {
    std::env::var("REDIRECT_SOAK_MINUTES").map_or(3.0, |text| text.parse().expect("a number of minutes"))
}

/// The node, its agent, and the two ways in which the plugin learns of a pod.
struct Soak<'a> {
    world: &'a World<'a>,
    place: Place,
    agent: Option<Agent>,
    kills: u32,
    upgrades: u32,
}

impl Soak<'_> {
    fn start_agent(&mut self) {
        let node = self.world.node;
        let mut keys = json!({ "podSource": "annotations", "dnsCapture": true });
        keys["agentSocket"] = json!(node.dir().join("agent.sock"));
        (keys["bpffsRoot"], keys["stateDir"]) = (json!(node.bpffs()), json!(node.state_dir()));
        let arguments = self.place.arguments(&keys, &["--repair-pods", "--live-policy"]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.agent = Some(self.world.agent(&arguments));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, text) = get(self.world.address, "/readyz");
            if status == 200 {
                return;
            }
            assert!(Instant::now() < deadline, "the agent is not ready: {text}\n{}", self.world.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Agent::pid)
    }

    fn kill_agent(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id"));
        kill(pid, Signal::SIGKILL).expect("it is killed");
        self.agent = None;
        self.kills += 1;
    }

    /// The chain that a runtime finds, the same with an agent that is asked, and our plugin alone: the one
    /// for `lo` refuses to be called again, as it finds our addresses there.
    fn chains(&self) -> [Chain; 3] {
        let list: Value =
            serde_json::from_slice(&std::fs::read(self.place.file()).expect("the list")).expect("JSON");
        let mut asks = list.clone();
        let plugins = asks["plugins"].as_array_mut().expect("plugins");
        plugins.last_mut().expect("our entry is the last one")["podSource"] = json!("kubernetes");
        let mut alone = list.clone();
        alone["plugins"] = json!([list["plugins"].as_array().and_then(|plugins| plugins.last())]);
        alone["plugins"][0]["prevResult"] = json!({ "cniVersion": list["cniVersion"] });
        [list, asks, alone].map(|list| Chain::new(list, &[&self.place.bin()]).expect("a chain"))
    }

    fn upgrade(&mut self, abi: u32) {
        let upgraded =
            Outcome::of(self.world.node.redirect().arg("upgrade").env(ABI_VARIABLE, abi.to_string()));
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
        self.upgrades += 1;
    }

    /// Other programs with the same maps, while connections are made.
    fn exchange_programs(&mut self) {
        stamp(self.world.node, "0.0.1");
        self.upgrade(ABI_VERSION);
    }

    /// Programs with maps of their own, and back. No connection is made meanwhile: the counters begin again.
    fn other_maps_and_back(&mut self, traffic: &Traffic) {
        traffic.counters_add_up(self.world.node);
        self.kill_agent();
        self.upgrade(ABI_VERSION + 1);
        traffic.batch();
        self.upgrade(ABI_VERSION);
        self.start_agent();
        traffic.count_again(self.world.node);
    }
}

/// One round of everything. Every tenth goes through other maps.
fn round(
    soak: &mut Soak<'_>,
    coming: &mut Coming<'_>,
    moody: &mut Moody<'_>,
    traffic: &Traffic,
    gate: &Mutex<()>,
) {
    let number = coming.rounds();
    coming.round(traffic);
    moody.added_again(traffic);
    moody.told(traffic);
    if number.is_multiple_of(2) {
        soak.exchange_programs();
    }
    if number.is_multiple_of(3) {
        soak.kill_agent();
        soak.start_agent();
    }
    if number.is_multiple_of(10) {
        let closed = gate.lock().expect("the traffic flows");
        coming.all_go();
        moody.counters_add_up();
        soak.other_maps_and_back(traffic);
        moody.count_again();
        drop(closed);
    }
}

/// What the node has while nothing happens.
fn look(
    soak: &Soak<'_>,
    coming: &mut Coming<'_>,
    moody: &mut Moody<'_>,
    traffic: &Traffic,
    begun: Instant,
    first: Option<&Look>,
) -> Look {
    let node = soak.world.node;
    coming.all_go();
    // The same policies, and the same destinations with a slot, at every look.
    moody.calm_down(traffic);
    traffic.batch();
    traffic.counters_add_up(node);
    moody.counters_add_up();
    if let Some(first) = first {
        let deadline = Instant::now() + PATIENCE;
        while exact(node) != first.exact && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    // What RCU frees, and workers that follow it.
    std::thread::sleep(Duration::from_secs(2));
    let look = Look::at(node, soak.pid(), begun.elapsed().as_secs(), coming.pods(), traffic.so_far());
    println!("{}", look.line(soak.pid()));
    if let Some(first) = first {
        assert_eq!(look.exact, first.exact, "now, and at the first look");
    }
    look
}

#[test]
fn what_comes_and_goes_for_long_leaves_the_node_as_it_was() {
    kernel_test(|node| {
        let world = World::new(node);
        let place = Place::new(node.dir());
        let mut soak = Soak { world: &world, place, agent: None, kills: 0, upgrades: 0 };
        soak.start_agent();
        let _ = soak.place.chain();
        let chains = soak.chains();
        let traffic = Traffic::new(node, &chains[0]);
        let mut moody = Moody::new(&world, &chains);
        let mut coming = Coming::new(&world, &chains);
        let (gate, stop) = (Mutex::new(()), AtomicBool::new(false));
        let looks = std::thread::scope(|scope| {
            let flow = scope.spawn(|| traffic.flow(&gate, &stop));
            let stop = Stop(&stop);
            let looks =
                soak_for_long(&mut soak, &mut coming, &mut moody, &traffic, &gate, &|| !flow.is_finished());
            drop(stop);
            flow.join().expect("all connections went as they should");
            looks
        });
        let (faults, all) = grown(&looks);
        println!(
            "figures: {} agents killed, {} upgrades, {} policies changed, {} rounds; the slowest ADD took {:?}",
            soak.kills,
            soak.upgrades,
            moody.changes(),
            coming.rounds(),
            coming.slowest()
        );
        println!("figures: grown by any amount: {all}");
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    });
}

/// Rounds until the time is up, with looks in between. The first follows a round that warms everything up.
fn soak_for_long(
    soak: &mut Soak<'_>,
    coming: &mut Coming<'_>,
    moody: &mut Moody<'_>,
    traffic: &Traffic,
    gate: &Mutex<()>,
    flows: &dyn Fn() -> bool,
) -> Vec<Look> {
    let whole = Duration::from_secs_f64(minutes() * 60.0);
    let begun = Instant::now();
    HEADING.iter().for_each(|line| println!("{line}"));
    let mut looks: Vec<Look> = Vec::new();
    while begun.elapsed() < whole || looks.len() < 3 {
        assert!(flows(), "the traffic has ended early");
        round(soak, coming, moody, traffic, gate);
        let due = whole * u32::try_from(looks.len()).unwrap_or(LOOKS) / LOOKS;
        if begun.elapsed() >= due {
            let closed = gate.lock().expect("the traffic flows");
            let look = look(soak, coming, moody, traffic, begun, looks.first());
            looks.push(look);
            drop(closed);
        }
    }
    looks
}

/// Ends the traffic, also where a round fails: the scope waits for it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
