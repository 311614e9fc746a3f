//! The guard: closed when everything else of ours is gone, and unnoticed when nothing is.
//!
//! Modules in reading order: [`faults`] takes away what redirects, and [`tproxy`] does so in that mode;
//! [`forwarded`] has networks inside the pod; [`kernel_socket`] has the kernel connect; [`packets`] writes
//! its own; in [`ways_out`] the pod changes its own network; [`dns`] asks; [`in_order`] proves that nothing
//! is refused that should pass; [`modes`], [`neighbours`] and [`shown`] are what an operator sees.
//!
//! In each fault the wire is recorded outside the pod: no connection of the application's is to be seen
//! there, and no byte of the application's own server.
//!
//! Run as root with `--test-threads=1`; `KEEP=1` keeps the pods of a failed test.

mod dns;
mod faults;
mod forwarded;
mod in_order;
mod kernel_socket;
mod modes;
mod neighbours;
mod packets;
mod raw;
mod shown;
mod tproxy;
mod ways_out;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{
    Captured, Errno, Event, Family, Node, Pod, Process, Seen, Service, Sidecar, Tap, any, kernel_version,
};

/// The port of the application's server and of the peer's.
const PORT: u16 = 8080;

/// Dials and tells who answered. The call does not wait longer than five seconds.
fn dial(from: &Process, to: SocketAddr) -> Result<Seen, Errno> {
    let socket = from.tcp_nonblocking(Family::of(&to.ip()));
    match socket.connect(to) {
        Err(Errno::EINPROGRESS) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    socket.await_connect()?;
    Ok(socket.seen())
}

/// A cable between the two: the pod's end is net1 with 10.99.0.2 and fd99::2, the peer has 3.
fn cable(pod: &Pod, peer: &Pod) {
    let other = peer.netns().path().display();
    pod.netns().ip(&format!("link add net1 type veth peer name far\nlink set far netns {other}"));
    for (end, name, last) in [(pod, "net1", 2), (peer, "far", 3)] {
        end.netns().ip(&format!(
            "addr add 10.99.0.{last}/24 dev {name}\n\
             addr add fd99::{last}/64 dev {name} nodad\n\
             link set {name} up"
        ));
    }
}

/// How often the guard has counted something.
fn guarded(node: &Node, pod: &Pod) -> u64 {
    let stats = node.stats(pod);
    Event::GUARD.iter().map(|event| stats[event.label()]).sum()
}

/// Waits until an event was counted so often: a packet may have to wait for its neighbour's address, and on
/// a busy machine for its turn. Fails when that takes more than ten seconds, or when it was counted more
/// often.
fn await_count(node: &Node, pod: &Pod, event: Event, times: u64) {
    assert_eq!(counted(node, pod, event, times), times, "{event:?}");
}

/// Waits until an event was counted so often, ten seconds at most; how often it was.
fn counted(node: &Node, pod: &Pod, event: Event, times: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.count(pod, event) < times && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    node.count(pod, event)
}

/// An enrolled pod with a sidecar and an application that serves, and a peer that serves, all on port 8080.
struct Scene<'a> {
    node: &'a Node,
    pod: Pod,
    peer: Pod,
    sidecar: Option<Sidecar>,
    app: Process,
    server: Process,
    tap: Tap,
}

/// What a peer finds where `inbound` is gone: the guard binds its SYN to a socket of the sidecar. These have
/// SO_REUSEPORT, as Envoy's have; before Linux 6.6 they can be given nothing, and the SYN is refused.
fn bound_by_the_guard() -> Result<u16, Errno> {
    if kernel_version() >= (6, 6) { Ok(15006) } else { Err(Errno::ECONNREFUSED) }
}

impl<'a> Scene<'a> {
    fn new(node: &'a Node, flags: &[&str]) -> Scene<'a> {
        let wire = node.new_wire("guarded");
        let (pod, peer) = (wire.pod("pod"), wire.pod("peer"));
        node.attach(&pod, flags);
        let sidecar = Some(pod.sidecar());
        let (app, server) = (pod.app(), peer.app());
        for process in [&app, &server] {
            process.serve(&Family::ALL.map(|family| any(family, PORT)), Service::Tell).expect("serve");
        }
        let tap = Tap::on(wire.netns());
        Scene { node, pod, peer, sidecar, app, server, tap }
    }

    /// Everything works as it should, and the guard has nothing to do.
    fn assert_in_order(&self) {
        for family in Family::ALL {
            assert_eq!(dial(&self.app, self.peer.at(family, PORT)).map(|seen| seen.listener), Ok(15001));
            assert_eq!(dial(&self.server, self.pod.at(family, PORT)).map(|seen| seen.listener), Ok(15006));
        }
        self.assert_nothing_in_clear(&self.tap.take(Duration::from_millis(20)));
        assert_eq!(guarded(self.node, &self.pod), 0);
    }

    /// With parts of ours gone: `from` reaches the sidecar or is refused, the peer too, and nothing of it is
    /// seen on the wire.
    fn assert_closed(&self, from: &Process) {
        for family in Family::ALL {
            for (process, to, sidecar) in
                [(from, self.peer.at(family, PORT), 15001), (&self.server, self.pod.at(family, PORT), 15006)]
            {
                match dial(process, to) {
                    Ok(seen) => assert_eq!(seen.listener, sidecar, "{to}: {seen:?}"),
                    // At once, not after two minutes of silence.
                    Err(error) => assert_eq!(error, Errno::ECONNREFUSED, "{to}"),
                }
            }
        }
        self.assert_nothing_in_clear(&self.tap.take(Duration::from_millis(50)));
    }

    fn assert_nothing_in_clear(&self, wire: &[Captured]) {
        assert_eq!(self.server.take_seen(), [], "the peer's server got a connection");
        assert_eq!(self.app.take_seen(), [], "the application's server got a connection");
        let clear: Vec<_> = wire.iter().filter(|captured| self.is_clear(captured)).collect();
        assert!(clear.is_empty(), "on the wire: {clear:?}");
    }

    /// A connection from the pod to the peer's server, or what the application's own server says.
    fn is_clear(&self, captured: &Captured) -> bool {
        let of_pod = [self.pod.ip(Family::V4), self.pod.ip(Family::V6)].contains(&captured.src.ip());
        let tells = |text: &[u8]| captured.payload.windows(text.len()).any(|window| window == text);
        of_pod && (captured.dst.port() == PORT || tells(b"\"listener\":8080"))
            || captured.src.port() == PORT && captured.is_syn_ack() && !of_pod
    }
}
