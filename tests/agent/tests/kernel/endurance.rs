//! Traffic goes on while agents, plugin and programs of two versions take turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::chain::Chain;
use harness::dns::message;
use harness::envoy::{Bootstrap, Envoy};
use harness::{DnsProxy, Family, Node, Pod, Process, Service, Socket, kernel_test};
use serde_json::Value;

use super::World;
use super::disorder::Disorder;
use super::place::sandbox;

/// The port that the applications serve on.
const PORT: u16 = 8080;
/// Connections that stay open all the time.
const STREAMS: usize = 64;
/// Requests follow one another so fast.
const PACE: Duration = Duration::from_millis(20);
/// Two of each version, one of which is killed early.
const ROUNDS: u32 = 4;
/// A name server without an owner: an answer can only come from the sidecar.
const SERVER: &str = "192.0.2.53:53";

/// A pod with a real Envoy, a DNS proxy and an application.
struct Member {
    pod: Pod,
    app: Process,
    envoy: Envoy,
    _dns: DnsProxy,
}

impl Member {
    fn new(node: &Node, chain: &Chain, name: &str) -> Member {
        let pod = node.pod(name);
        chain.add(&sandbox(&pod)).expect("the plugin redirects the pod");
        let cgroup = pod.container("istio-proxy");
        let bootstrap = Bootstrap::default();
        let envoy = Envoy::start(name, pod.netns(), &cgroup, &bootstrap, node.dir()).expect("Envoy starts");
        let (app, dns) = (pod.app(), DnsProxy::start(&pod));
        app.serve(&[pod.at(Family::V4, PORT)], Service::Echo).unwrap();
        Member { pod, app, envoy, _dns: dns }
    }

    /// Asks for a name, connects, and has an answer.
    fn request(&self, number: u16, to: SocketAddr) {
        let server: SocketAddr = SERVER.parse().unwrap();
        let asks = self.app.udp(Family::V4);
        let asked = asks.send_to(&message::question(number, "two"), server);
        asked.unwrap_or_else(|error| panic!("question {number}: {error}"));
        let answer = asks.receive(512).unwrap_or_else(|error| panic!("answer {number}: {error}"));
        assert_eq!((message::id(&answer.data), answer.from), (number, Some(server)));
        let socket = self.app.connect(to).unwrap_or_else(|error| panic!("request {number}: {error}"));
        socket.expect_echo(b"hello");
    }
}

#[test]
fn no_request_fails_while_agent_plugin_and_programs_are_killed_upgraded_and_rolled_back() {
    kernel_test(|node| {
        let world = World::new(node);
        let disorder = Disorder::new(&world);
        let chain = disorder.installed();
        let (mut one, two) = (Member::new(node, &chain, "one"), Member::new(node, &chain, "two"));
        let to = two.pod.at(Family::V4, PORT);
        let streams: Vec<Socket> = (0..STREAMS).map(|_| one.app.connect(to).unwrap()).collect();
        streams.iter().for_each(|stream| stream.expect_echo(b"before"));
        let ((requests, slowest), rounds) = disorder.during(|rounds| {
            let (mut requests, mut slowest) = (0, Duration::ZERO);
            while rounds() < ROUNDS {
                let begun = Instant::now();
                one.request(requests, to);
                slowest = slowest.max(begun.elapsed());
                let stream = &streams[usize::from(requests) % STREAMS];
                stream.expect_echo(b"meanwhile");
                requests += 1;
                std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
            }
            (requests, slowest)
        });
        streams.iter().for_each(|stream| stream.expect_echo(b"after"));
        assert!(requests > 100, "{requests} requests, {rounds} rounds");
        // Each of them went through the sidecar; streams are not logged before they end.
        let logged = one.envoy.wait_for_entries(usize::from(requests)).unwrap();
        let outbound = logged.iter().filter(|entry| entry.original_dst == to).count();
        assert_eq!(outbound, usize::from(requests));
        println!(
            "{requests} requests with names, none failed, the slowest took {slowest:?}; {STREAMS} streams; {rounds} rounds"
        );
        for member in [&one, &two] {
            chain.del(&sandbox(&member.pod), &Value::Null).unwrap();
        }
    });
}
