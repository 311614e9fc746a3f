//! `enforce`, `audit` and `off`.

use std::process::Command;

use harness::{Event, Family, Pod, Process, Service, User, kernel_test};

use crate::{PORT, Scene, any, dial, guarded};

/// The filters of a direction of the pod's eth0.
pub(crate) fn filters(pod: &Pod, direction: &str) -> String {
    pod.netns().output_of(Command::new("tc").args(["filter", "show", "dev", "eth0", direction]))
}

/// The queueing disciplines of the pod's eth0.
pub(crate) fn qdiscs(pod: &Pod) -> String {
    pod.netns().output_of(Command::new("tc").args(["qdisc", "show", "dev", "eth0"]))
}

#[test]
fn audit_counts_and_lets_pass() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "audit"]);
        scene.assert_in_order();
        let elsewhere = node.pod("elsewhere");
        let stray = Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), User::APP);
        for family in Family::ALL {
            assert_eq!(dial(&stray, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
        }
        assert_eq!(node.count(&scene.pod, Event::GuardOutbound), 2);
        crate::faults::end_inbound(node);
        for family in Family::ALL {
            assert_eq!(dial(&scene.server, scene.pod.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
        }
        assert_eq!(node.count(&scene.pod, Event::GuardInbound), 2);
    });
}

#[test]
fn inbound_is_counted_once_in_every_mode() {
    kernel_test(|node| {
        for mode in ["enforce", "audit", "off"] {
            let pod = node.pod(mode);
            node.attach(&pod, &["--guard", mode]);
            let (_sidecar, client) = (pod.sidecar(), node.pod(&format!("client-{mode}")));
            let process = client.app();
            for family in Family::ALL {
                assert_eq!(
                    dial(&process, pod.at(family, PORT)).map(|seen| seen.listener),
                    Ok(15006),
                    "{mode}"
                );
            }
            assert_eq!(node.count(&pod, Event::InboundRedirected), 2, "{mode}");
            assert_eq!(guarded(node, &pod), 0, "{mode}");
        }
    });
}

#[test]
fn off_puts_nothing_on_the_interface_and_the_mode_can_change() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &["--guard", "off"]);
        assert!(!qdiscs(&pod).contains("clsact"), "{}", qdiscs(&pod));
        node.attach(&pod, &[]);
        for direction in ["egress", "ingress"] {
            assert!(filters(&pod, direction).contains(&format!("guard_{direction}")), "{direction}");
        }
        node.attach(&pod, &["--guard", "off"]);
        assert!(!filters(&pod, "egress").contains("guard_"), "{}", filters(&pod, "egress"));
        assert_eq!(crate::shown::drift(node), "[]");
    });
}

#[test]
fn a_sidecar_that_does_not_listen_yet_refuses_at_once() {
    kernel_test(|node| {
        let mut scene = Scene::new(node, &[]);
        scene.sidecar = None;
        for family in Family::ALL {
            let refused = dial(&scene.server, scene.pod.at(family, PORT));
            assert_eq!(refused.map(|seen| seen.listener), Err(harness::Errno::ECONNREFUSED));
        }
        assert_eq!(scene.app.take_seen(), []);
        assert_eq!(node.count(&scene.pod, Event::InboundRefused), 2);
        let sidecar = scene.pod.proxy();
        sidecar.serve(&Family::ALL.map(|family| any(family, 15006)), Service::Tell).unwrap();
        for family in Family::ALL {
            assert_eq!(dial(&scene.server, scene.pod.at(family, PORT)).map(|seen| seen.listener), Ok(15006));
        }
    });
}
