//! The capabilities that the agent needs: with these a running pod is repaired, and with one of them less it
//! is not.

use std::time::{Duration, Instant};

use harness::{Family, Node, kernel_test};

use super::{Other, World};
use crate::driver::{Agent, CAPABILITIES, with_capabilities};

/// Whether an agent with these capabilities redirects a running pod in both directions.
fn repairs(node: &Node, name: &str, capabilities: &[&str]) -> bool {
    let world = World::new(node);
    let (pod, other) = (node.pod(name), Other::new(node));
    let (_sidecar, app) = (pod.sidecar(), pod.app());
    world.tell(&pod, |_| {});
    let kubeconfig = world.api.kubeconfig(node.dir());
    let _agent =
        Agent::start_on(with_capabilities(node, capabilities), node.dir(), &kubeconfig, &["--repair-pods"]);
    let deadline = Instant::now() + Duration::from_secs(8);
    let both = || {
        other.captures(&app, Family::V4, 8080)
            && other.app.connect(pod.at(Family::V4, 8080)).is_ok_and(|socket| socket.seen().listener == 15006)
    };
    while Instant::now() < deadline {
        if both() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}

#[test]
fn a_running_pod_is_repaired_with_exactly_these_capabilities() {
    kernel_test(|node| assert!(repairs(node, "all", &CAPABILITIES), "{CAPABILITIES:?} are not enough"));
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|capability| *capability != missing).collect();
        kernel_test(|node| assert!(!repairs(node, "less", &rest), "{missing} is not needed"));
    }
}
