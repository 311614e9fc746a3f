//! Somebody else has filters on the pod's interface, too: in either order both work, and each goes alone.

use std::process::Command;

use harness::{Family, Pod, kernel_test};

use crate::modes::{filters, qdiscs};
use crate::{PORT, Scene, dial};

/// A neighbour's program: it drops UDP to port 7777 and asks the next filter about everything else. (Classic
/// BPF, as tc-bpf(8) takes it: protocol at 23, destination port at 36.)
const BYTECODE: &str = "6,48 0 0 23,21 0 3 17,40 0 0 36,21 0 1 7777,6 0 0 2,6 0 0 4294967295";

fn tc(pod: &Pod, arguments: &str) -> String {
    pod.netns().output_of(Command::new("tc").args(arguments.split(' ')))
}

/// Puts the neighbour's filter on both directions; the qdisc may be ours.
fn move_in(pod: &Pod, options: &str) {
    if !qdiscs(pod).contains("clsact") {
        tc(pod, "qdisc add dev eth0 clsact");
    }
    for direction in ["egress", "ingress"] {
        let add = format!("filter add dev eth0 {direction}{options} bpf da bytecode");
        let mut command = Command::new("tc");
        command.args(add.split(' ')).arg(BYTECODE);
        let _ = pod.netns().output_of(&mut command);
    }
}

fn assert_both_work(scene: &Scene<'_>) {
    let socket = scene.app.udp(Family::V4);
    let target = scene.server.udp(Family::V4);
    target.bind(crate::any(Family::V4, 7777)).unwrap();
    let _ = socket.send_to(b"dropped", scene.peer.at(Family::V4, 7777));
    assert!(target.receive_within(100, 100).is_err(), "the neighbour's filter does not drop any more");
    let elsewhere = scene.node.pod("elsewhere");
    let stray =
        harness::Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), harness::User::APP);
    scene.assert_closed(&stray);
    for family in Family::ALL {
        assert_eq!(dial(&scene.app, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(15001));
    }
    let _ = scene.tap.take(std::time::Duration::ZERO);
}

#[test]
fn the_neighbour_comes_later() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        move_in(&scene.pod, "");
        assert_both_work(&scene);
        node.detach(&scene.pod);
        for direction in ["egress", "ingress"] {
            let left = filters(&scene.pod, direction);
            assert!(left.contains("bytecode") && !left.contains("guard_"), "{left}");
        }
    });
}

#[test]
fn the_neighbour_was_there_before() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "off"]);
        move_in(&scene.pod, "");
        node.attach(&scene.pod, &[]);
        assert_both_work(&scene);
        node.detach(&scene.pod);
        let left = filters(&scene.pod, "egress");
        assert!(left.contains("bytecode") && !left.contains("guard_"), "{left}");
        tc(&scene.pod, "filter del dev eth0 egress");
        tc(&scene.pod, "filter del dev eth0 ingress");
        node.attach(&scene.pod, &[]);
        node.detach(&scene.pod);
        assert!(qdiscs(&scene.pod).contains("clsact"), "the qdisc was the neighbour's");
    });
}

#[test]
fn the_neighbour_has_the_first_priority() {
    kernel_test(|node| {
        // Of the same kind, and for one protocol only, which the kernel does not let us share.
        for options in [" prio 1", " prio 1 protocol ip"] {
            let wire = node.new_wire(if options.len() > 7 { "one" } else { "all" });
            let pod = wire.pod("pod");
            move_in(&pod, options);
            node.attach(&pod, &[]);
            for direction in ["egress", "ingress"] {
                let both = filters(&pod, direction);
                assert!(both.contains("bytecode") && both.contains(&format!("guard_{direction}")), "{both}");
            }
            assert_eq!(crate::shown::drift(node), "[]");
            node.detach(&pod);
            let left = filters(&pod, "egress");
            assert!(left.contains("bytecode") && !left.contains("guard_"), "{left}");
        }
    });
}

#[test]
fn our_own_qdisc_goes_with_us() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let before = qdiscs(&pod);
        node.attach(&pod, &[]);
        assert!(qdiscs(&pod).contains("clsact"));
        // A repeated attach does not take its own for a neighbour's.
        node.attach(&pod, &[]);
        node.detach(&pod);
        assert_eq!(qdiscs(&pod), before);
    });
}

#[test]
fn an_ingress_qdisc_has_no_room() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        tc(&pod, "qdisc add dev eth0 ingress");
        let outcome = harness::cli::Outcome::of(&mut node.attach_command(&pod));
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        for words in ["eth0", "`ingress`", "clsact", "`off`"] {
            assert!(outcome.stderr.contains(words), "{outcome:?}");
        }
        assert_eq!(node.attached(), Vec::<String>::new());
        node.attach(&pod, &["--guard", "off"]);
    });
}
