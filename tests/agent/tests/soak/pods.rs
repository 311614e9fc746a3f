//! Pods that come and go, and pods whose policy changes while they run.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use apiserver::Kind;
use harness::chain::{Chain, Refusal};
use harness::{Errno, Event, Family, Pod, Process, Sidecar};
use serde_json::{Value, json};

use super::traffic::{Made, PATIENCE, PORT, Traffic, differ};
use crate::driver::until_within;
use crate::kernel::World;
use crate::kernel::place::sandbox;

/// So many of those that come and go live at one moment.
const ALIVE: usize = 4;
/// The kubelet calls again when the plugin says "try again later".
const TRY_AGAIN_LATER: u64 = 11;
/// The annotation that changes.
const EXCLUDE: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";

/// Adds a pod as a kubelet does; how long that took.
fn add(chain: &Chain, pod: &Pod) -> Duration {
    let begun = Instant::now();
    while let Err(error) = chain.add(&sandbox(pod)) {
        let code = error.downcast_ref::<Refusal>().map(|refusal| refusal.code);
        assert_eq!(code, Some(TRY_AGAIN_LATER), "{}: {error:#}", pod.name());
        assert!(begun.elapsed() < PATIENCE, "{} waits: {error:#}", pod.name());
    }
    begun.elapsed()
}

/// Those that come and go.
pub(super) struct Coming<'a> {
    world: &'a World<'a>,
    chains: &'a [Chain; 3],
    alive: VecDeque<(Pod, Process)>,
    pods: usize,
    rounds: usize,
    slowest: Duration,
}

impl<'a> Coming<'a> {
    pub(super) fn new(world: &'a World<'a>, chains: &'a [Chain; 3]) -> Coming<'a> {
        Coming { world, chains, alive: VecDeque::new(), pods: 0, rounds: 0, slowest: Duration::ZERO }
    }

    /// Two pods come, one by its annotations and one by the agent; the oldest go.
    pub(super) fn round(&mut self, traffic: &Traffic) {
        for by_agent in [false, true] {
            self.come(by_agent, traffic);
            while self.alive.len() > ALIVE {
                self.oldest_goes();
            }
        }
        self.rounds += 1;
    }

    fn come(&mut self, by_agent: bool, traffic: &Traffic) {
        let pod = self.world.node.pod(&format!("p{}", self.pods));
        self.world.tell(&pod, |object| object["status"]["phase"] = json!("Pending"));
        self.slowest = self.slowest.max(add(&self.chains[usize::from(by_agent)], &pod));
        let app = pod.app();
        // Without a sidecar it is closed, with one it is captured.
        for family in Family::ALL {
            let refused = app.connect(traffic.server.at(family, PORT)).map(drop);
            assert_eq!(refused, Err(Errno::ECONNREFUSED), "{} is open", pod.name());
        }
        let sidecar = pod.sidecar();
        for family in Family::ALL {
            let seen = app.connect(traffic.server.at(family, PORT)).expect("a connection").seen();
            assert_eq!(seen.original_dst, Ok(traffic.server.at(family, PORT)));
        }
        let made: Made = [
            (Event::NoListener.label(), 2),
            (Event::OutboundRedirected.label(), 2),
            (Event::ListenerAdded.label(), 4),
        ]
        .into();
        differ(&self.world.node.stats(&pod), &BTreeMap::new(), &made);
        drop(sidecar);
        self.world.tell(&pod, |_| {});
        self.alive.push_back((pod, app));
        self.pods += 1;
    }

    /// First its processes, then its network, then its object.
    fn oldest_goes(&mut self) {
        let Some((pod, app)) = self.alive.pop_front() else { return };
        drop(app);
        self.chains[0].del(&sandbox(&pod), &Value::Null).expect("DEL never fails");
        self.world.api.store().remove(Kind::PODS, "shop", pod.name());
    }

    pub(super) fn all_go(&mut self) {
        while !self.alive.is_empty() {
            self.oldest_goes();
        }
    }

    pub(super) fn pods(&self) -> usize {
        self.pods
    }

    pub(super) fn rounds(&self) -> usize {
        self.rounds
    }

    pub(super) fn slowest(&self) -> Duration {
        self.slowest
    }
}

/// Two pods that change: one is added again with other annotations, the other is changed at the API server.
pub(super) struct Moody<'a> {
    world: &'a World<'a>,
    chain: &'a Chain,
    added: Dialling,
    told: Dialling,
    excluded: [bool; 2],
    changes: u32,
}

/// A pod with a sidecar that dials the server.
struct Dialling {
    pod: Pod,
    app: Process,
    _sidecar: Sidecar,
    made: RefCell<Made>,
    from: BTreeMap<String, u64>,
}

impl Dialling {
    fn new(world: &World<'_>, chain: &Chain, name: &str, is_told: bool) -> Dialling {
        let pod = world.node.pod(name);
        if is_told {
            world.tell(&pod, |_| {});
        }
        add(chain, &pod);
        let (sidecar, app) = (pod.sidecar(), pod.app());
        let from = world.node.stats(&pod);
        Dialling { pod, app, _sidecar: sidecar, made: RefCell::default(), from }
    }

    /// Whether a connection to the server is captured.
    fn captures(&self, traffic: &Traffic, family: Family) -> bool {
        let seen = self.app.connect(traffic.server.at(family, PORT)).expect("a connection").seen();
        let captured = seen.listener == 15001;
        let event = if captured { Event::OutboundRedirected } else { Event::ExcludedDirect };
        *self.made.borrow_mut().entry(event.label()).or_default() += 1;
        captured
    }
}

impl<'a> Moody<'a> {
    pub(super) fn new(world: &'a World<'a>, [chain, asks, alone]: &'a [Chain; 3]) -> Moody<'a> {
        let added = Dialling::new(world, chain, "added", false);
        let told = Dialling::new(world, asks, "told", true);
        Moody { world, chain: alone, added, told, excluded: [false; 2], changes: 0 }
    }

    /// A repeated ADD with the other policy, which is in force when it returns.
    pub(super) fn added_again(&mut self, traffic: &Traffic) {
        self.excluded[0] = !self.excluded[0];
        let mut sandbox = sandbox(&self.added.pod);
        if self.excluded[0] {
            sandbox.annotations.insert(EXCLUDE.to_owned(), PORT.to_string());
        }
        self.chain.add(&sandbox).expect("a repeated ADD");
        for family in Family::ALL {
            assert_eq!(self.added.captures(traffic, family), !self.excluded[0]);
        }
        self.changes += 1;
    }

    /// The API server's annotation changes, and the agent follows.
    pub(super) fn told(&mut self, traffic: &Traffic) {
        self.excluded[1] = !self.excluded[1];
        let ports = if self.excluded[1] { PORT.to_string() } else { String::new() };
        self.world.api.store().change(Kind::PODS, "shop", "told", |pod| {
            pod["metadata"]["annotations"][EXCLUDE] = json!(ports);
        });
        for family in Family::ALL {
            until_within(PATIENCE, "the policy is in force", || {
                self.told.captures(traffic, family) != self.excluded[1]
            });
        }
        self.changes += 1;
    }

    /// Nothing is excluded, and each has dialled since.
    pub(super) fn calm_down(&mut self, traffic: &Traffic) {
        if self.excluded[0] {
            self.added_again(traffic);
        }
        if self.excluded[1] {
            self.told(traffic);
        }
        for family in Family::ALL {
            assert!(self.added.captures(traffic, family) && self.told.captures(traffic, family));
        }
    }

    pub(super) fn counters_add_up(&self) {
        for one in [&self.added, &self.told] {
            differ(&self.world.node.stats(&one.pod), &one.from, &one.made.borrow());
        }
    }

    pub(super) fn count_again(&mut self) {
        for one in [&mut self.added, &mut self.told] {
            one.from = self.world.node.stats(&one.pod);
            one.made.borrow_mut().clear();
        }
    }

    pub(super) fn changes(&self) -> u32 {
        self.changes
    }
}
