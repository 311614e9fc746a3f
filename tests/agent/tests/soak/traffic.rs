//! A pod whose connections go every way that there is, each counted where it is made, so that the programs'
//! counters can be held against it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harness::chain::Chain;
use harness::dns::message;
use harness::{DnsProxy, Event, Family, Node, Pod, Process, Seen, Service, Sidecar, any, crowded, localhost};

use crate::driver::until_within;
use crate::kernel::place::sandbox;

/// For what takes a moment on an idle machine, and much longer in a guest that is emulated.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// The port of applications.
pub(super) const PORT: u16 = 8080;
/// So many connections are open at once; a multiple of what `crowded` names.
const AT_ONCE: usize = 20;
/// So many questions are asked with one socket.
const QUESTIONS: u16 = 5;

/// How often each event must have been counted, by its label.
pub(super) type Made = BTreeMap<&'static str, u64>;

/// The pod, and a server without a sidecar.
pub(super) struct Traffic {
    pub(super) pod: Pod,
    app: Process,
    proxy: Process,
    sidecar: Sidecar,
    dns: Mutex<DnsProxy>,
    pub(super) server: Pod,
    peer: Process,
    /// What was made since the counters were read.
    made: Mutex<Made>,
    /// The counters at that time.
    from: Mutex<BTreeMap<String, u64>>,
    /// Connections and questions of all times.
    all: Mutex<u64>,
}

/// Addresses without an owner: only a redirected connection gets an answer.
fn far_away(family: Family, port: u16) -> SocketAddr {
    let ip = if family == Family::V6 { "2001:db8::20" } else { "192.0.2.20" };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    pub(super) fn new(node: &Node, chain: &Chain) -> Traffic {
        let (pod, server) = (node.pod("traffic"), node.pod("server"));
        chain.add(&sandbox(&pod)).expect("the plugin redirects the pod");
        let (sidecar, dns) = (pod.sidecar(), DnsProxy::start(&pod));
        let (app, proxy, peer) = (pod.app(), pod.proxy(), server.app());
        for process in [&app, &peer] {
            process
                .serve(&[any(Family::V4, PORT), any(Family::V6, PORT)], Service::Tell)
                .expect("an application listens");
        }
        let (made, from, all) = Default::default();
        let traffic =
            Traffic { pod, app, proxy, sidecar, dns: Mutex::new(dns), server, peer, made, from, all };
        traffic.count_again(node);
        traffic
    }

    /// Batch after batch, each while the gate is open.
    pub(super) fn flow(&self, gate: &Mutex<()>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let open = lock(gate);
            self.batch();
            drop(open);
            // Who waits for the gate gets it.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Connections of each kind in both families; each ends where it should.
    pub(super) fn batch(&self) {
        for family in Family::ALL {
            let here = self.pod.at(family, PORT);
            let far: Vec<SocketAddr> = (80..84).map(|port| far_away(family, port)).collect();
            let crowd = crowded(family);
            let detours = (AT_ONCE / crowd.len()) as u64;
            self.open(&self.app, &far, (15001, &|to| far.contains(&to)));
            self.made(Event::OutboundRedirected, AT_ONCE as u64);
            self.open(&self.app, &crowd, (15001, &|to| crowd.contains(&to)));
            self.made(Event::OutboundRedirected, AT_ONCE as u64);
            self.made(Event::HandoffTaken, detours);
            self.open(&self.app, &[localhost(family, PORT)], (PORT, &|_| true));
            self.made(Event::LoopbackDirect, AT_ONCE as u64);
            self.open(&self.peer, &[here], (15006, &|to| to == here));
            self.made(Event::InboundRedirected, AT_ONCE as u64);
            self.open(&self.proxy, &[self.server.at(family, PORT)], (PORT, &|_| true));
            self.made(Event::ProxyDirect, AT_ONCE as u64);
            self.ask(family);
        }
    }

    /// Opens connections, sees that all came to this listener for such destinations, and closes them.
    fn open(&self, from: &Process, to: &[SocketAddr], (listener, right): (u16, &dyn Fn(SocketAddr) -> bool)) {
        let opened = from.open_many(to, AT_ONCE);
        assert_eq!((opened.count, opened.error), (AT_ONCE, None), "to {to:?}");
        let mut seen: Vec<Seen> = Vec::new();
        until_within(PATIENCE, "all connections are accepted", || {
            seen.extend(self.sidecar.take_seen());
            seen.extend(self.app.take_seen());
            // Pods whose policy changes dial the server as well.
            let own =
                |seen: &Seen| [self.pod.ip(Family::V4), self.pod.ip(Family::V6)].contains(&seen.client.ip());
            seen.extend(self.peer.take_seen().into_iter().filter(own));
            seen.len() >= AT_ONCE
        });
        let of_sidecar = listener != PORT;
        for one in seen {
            assert_eq!(one.listener, listener, "{one:?}");
            assert!(!of_sidecar || one.original_dst.is_ok_and(right), "{to:?}: {:?}", one.original_dst);
        }
        from.close_many();
        *lock(&self.all) += AT_ONCE as u64;
    }

    /// Questions over UDP, and a connection over TCP, to a name server without an owner.
    fn ask(&self, family: Family) {
        let server = far_away(family, 53);
        let socket = self.app.udp(family);
        for number in 0..QUESTIONS {
            socket.send_to(&message::question(number, "soak"), server).expect("a question is sent");
            let answer = socket.receive(512).expect("an answer");
            assert_eq!((message::id(&answer.data), answer.from), (number, Some(server)));
        }
        drop(self.app.connect(server).expect("DNS over TCP"));
        assert_eq!(lock(&self.dns).take_questions().iter().filter(|line| line.starts_with("udp")).count(), 5);
        self.made(Event::DnsRedirected, u64::from(QUESTIONS) + 1);
        *lock(&self.all) += u64::from(QUESTIONS) + 1;
    }

    fn made(&self, event: Event, count: u64) {
        *lock(&self.made).entry(event.label()).or_default() += count;
    }

    /// Connections and questions so far.
    pub(super) fn so_far(&self) -> u64 {
        *lock(&self.all)
    }

    /// Every counter says what was made, and no more.
    pub(super) fn counters_add_up(&self, node: &Node) {
        let (made, from) = (lock(&self.made), lock(&self.from));
        differ(&node.stats(&self.pod), &from, &made);
    }

    /// Counts from the counters as they are now. Programs with other maps begin at zero.
    pub(super) fn count_again(&self, node: &Node) {
        lock(&self.made).clear();
        *lock(&self.from) = node.stats(&self.pod);
    }
}

/// Fails where counters did not grow by what was made. Not compared: late segments of connections that were
/// reset, as a server tells its clients something when they may have gone.
pub(super) fn differ(now: &BTreeMap<String, u64>, from: &BTreeMap<String, u64>, made: &Made) {
    for (label, count) in now.iter().filter(|(label, _)| *label != Event::InboundNoSocket.label()) {
        let grown = count - from.get(label).copied().unwrap_or(0);
        assert_eq!(grown, made.get(label.as_str()).copied().unwrap_or(0), "{label}: counted, made");
    }
}
