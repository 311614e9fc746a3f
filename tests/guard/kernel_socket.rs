//! A connection that no process makes: the kernel does. MPTCP's path manager connects, in a worker, to where
//! the other end says that it can be reached as well (ADD_ADDR). No process of the pod has called `connect()`
//! for it.

use std::process::Command;
use std::time::Duration;

use harness::{Event, Family, Pod, Process, Socket, User, kernel_test};

use crate::{Scene, any, await_count};

/// Left alone by the policy.
const OPEN: u16 = 9001;
/// What the peer says besides, with another address of its own.
const OTHER: u16 = 9002;

fn mptcp(pod: &Pod, arguments: &str) {
    let _ = pod.netns().output_of(Command::new("ip").arg("mptcp").args(arguments.split(' ')));
}

/// An MPTCP connection from the pod to the peer, over which the peer tells of its other address.
fn connected(scene: &Scene<'_>, from: &Process) -> [Socket; 3] {
    scene.peer.netns().ip("addr add 10.77.0.9/16 dev eth0");
    for pod in [&scene.pod, &scene.peer] {
        mptcp(pod, "limits set subflows 2 add_addr_accepted 2");
    }
    mptcp(&scene.peer, &format!("endpoint add 10.77.0.9 dev eth0 port {OTHER} signal"));
    let listener = scene.server.mptcp(Family::V4).expect("this kernel has MPTCP");
    listener.bind(any(Family::V4, OPEN)).unwrap();
    listener.listen().unwrap();
    let client = from.mptcp(Family::V4).unwrap();
    client.connect(scene.peer.at(Family::V4, OPEN)).unwrap();
    let server = listener.accept().unwrap();
    // The path manager begins when data has gone both ways.
    client.send(b"ping").unwrap();
    assert_eq!(server.receive(16).unwrap().data, b"ping");
    server.send(b"pong").unwrap();
    assert_eq!(client.receive(16).unwrap().data, b"pong");
    [listener, server, client]
}

/// A process of which no hook on a cgroup knows, and the pod that it would belong to.
fn stray(scene: &Scene<'_>) -> (Process, Pod) {
    let elsewhere = scene.node.pod("elsewhere");
    (Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), User::APP), elsewhere)
}

#[test]
fn without_the_guard_the_kernel_connects_in_clear() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--exclude-outbound-ports=9001", "--guard=off"]);
        let (stray, _elsewhere) = stray(&scene);
        let _connection = connected(&scene, &stray);
        assert!(scene.tap.sees(|captured| captured.is_syn() && captured.dst.port() == OTHER));
    });
}

#[test]
fn what_the_kernel_connects_to_is_judged_by_the_policy() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--exclude-outbound-ports=9001"]);
        let (stray, _elsewhere) = stray(&scene);
        let _connection = connected(&scene, &stray);
        await_count(node, &scene.pod, Event::GuardOutbound, 1);
        let wire = scene.tap.take(Duration::from_millis(200));
        let others: Vec<_> = wire.iter().filter(|captured| captured.dst.port() == OTHER).collect();
        assert!(others.is_empty(), "{others:?}");
    });
}
