//! Traffic goes on while agent and programs come and go, and pods that come and go leave nothing behind.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::envoy::{Bootstrap, Envoy};
use harness::{Node, Pod, Process, Service, Socket, kernel_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::World;
use crate::driver::{Agent, until};
use crate::pods::{open_files, resident};

/// The port that the applications serve on.
const PORT: u16 = 8080;
/// Connections that stay open all the time.
const STREAMS: usize = 64;

/// A pod with a real Envoy and an application.
struct Member {
    pod: Pod,
    app: Process,
    _envoy: Envoy,
}

impl Member {
    fn new(node: &Node, name: &str) -> Member {
        let pod = node.pod(name);
        node.attach(&pod, &[]);
        let cgroup = pod.container("istio-proxy");
        let bootstrap = Bootstrap::default();
        let envoy = Envoy::start(name, pod.netns(), &cgroup, &bootstrap, node.dir()).expect("Envoy starts");
        let app = pod.app();
        app.serve(&[pod.at(false, PORT)], Service::Echo).unwrap();
        Member { pod, app, _envoy: envoy }
    }
}

#[test]
fn no_request_fails_while_the_agent_is_killed_and_programs_are_replaced() {
    kernel_test(|node| {
        let world = World::new(node);
        let (one, two) = (Member::new(node, "one"), Member::new(node, "two"));
        let to = two.pod.at(false, PORT);
        let streams: Vec<Socket> = (0..STREAMS).map(|_| one.app.connect(to).unwrap()).collect();
        streams.iter().for_each(|stream| stream.expect_echo(b"before"));
        world.tell(&one.pod, |_| {});
        world.tell(&two.pod, |_| {});
        let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        let (bpffs, state, dir) = (node.bpffs().to_owned(), node.state_dir(), node.dir().to_owned());
        let kubeconfig = world.api.kubeconfig(&dir);
        let redirect = || {
            let mut command = Command::new(harness::binary("redirect"));
            command.arg("--bpffs").arg(&bpffs).arg("--state-dir").arg(&state);
            command
        };
        let requests = std::thread::scope(|scope| {
            let disorder = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let modes = ["--repair-pods", "--live-policy"];
                    let agent = Agent::start_on(redirect(), &dir, &kubeconfig, &modes);
                    std::thread::sleep(Duration::from_millis(500));
                    kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGKILL).unwrap();
                    let upgraded = Outcome::of(redirect().arg("upgrade"));
                    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut requests = 0;
            let end = Instant::now() + Duration::from_secs(10);
            while Instant::now() < end && !disorder.is_finished() {
                let socket =
                    one.app.connect(to).unwrap_or_else(|error| panic!("request {requests}: {error}"));
                socket.expect_echo(b"hello");
                requests += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
            disorder.join().unwrap();
            requests
        });
        streams.iter().for_each(|stream| stream.expect_echo(b"after"));
        let rounds = rounds.load(Ordering::Relaxed);
        assert!(requests > 100 && rounds >= 3, "{requests} requests, {rounds} rounds");
        println!("{requests} requests and {STREAMS} streams went through {rounds} kills and upgrades");
    });
}

#[test]
fn pods_that_come_and_go_leave_memory_files_and_maps_as_they_were() {
    kernel_test(|node| {
        let world = World::new(node);
        let pods: Vec<Pod> = (0..4).map(|number| node.pod(&format!("web-{number}"))).collect();
        let agent = world.agent(&["--repair-pods", "--live-policy"]);
        let round = |number: u32| {
            for pod in &pods {
                world.tell(pod, |_| {});
                node.attach(pod, &["--exclude-outbound-ports", &(9000 + number).to_string()]);
            }
            if number.is_multiple_of(5) {
                world.api.cut();
            }
            for pod in &pods {
                node.detach(pod);
                world.api.store().remove(apiserver::Kind::PODS, "shop", pod.name());
            }
        };
        (0..5).for_each(round);
        let (memory, files) = (resident(agent.pid()), open_files(agent.pid()));
        (5..35).for_each(round);
        until("nothing is attached", || node.attached().is_empty());
        until("connections and sockets are closed", || open_files(agent.pid()) <= files + 2);
        for (map, entries) in node.map_entries() {
            assert_eq!(entries, 0, "{map}");
        }
        let grown = resident(agent.pid()).saturating_sub(memory);
        assert!(grown < 3072, "120 pods later the agent has {grown} kB more than {memory} kB");
        println!("120 pods: {grown} kB more than {memory} kB");
    });
}
