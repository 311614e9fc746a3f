//! Pods start while agents, plugin and programs of two versions take turns: each is captured, and none waits.

use std::time::{Duration, Instant};

use harness::{Family, Pod, Process, Sidecar, kernel_test};
use serde_json::Value;

use super::disorder::Disorder;
use super::place::sandbox;
use super::{Other, World};

/// So many pods start.
const PODS: usize = 50;
/// The longest that an ADD may take on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);
/// Two of each version at least, one of which is killed early.
const ROUNDS: u32 = 4;

/// A pod that was started, with what runs in it.
struct Started<'a> {
    pod: &'a Pod,
    app: Process,
    _sidecar: Sidecar,
}

#[test]
fn fifty_pods_start_while_agent_plugin_and_programs_are_killed_upgraded_and_rolled_back() {
    kernel_test(|node| {
        let world = World::new(node);
        let disorder = Disorder::new(&world);
        let chain = disorder.installed();
        let other = Other::new(node);
        let pods: Vec<Pod> = (0..PODS).map(|number| node.pod(&format!("p{number}"))).collect();
        let ((started, longest), rounds) = disorder.during(|rounds| {
            let mut longest = Duration::ZERO;
            let mut started = Vec::new();
            for (number, pod) in pods.iter().enumerate() {
                let begun = Instant::now();
                chain.add(&sandbox(pod)).unwrap_or_else(|error| panic!("pod {number}: {error:#}"));
                longest = longest.max(begun.elapsed());
                let (sidecar, app) = (pod.sidecar(), pod.app());
                assert!(other.captures(&app, Family::V4, 8080), "pod {number} is not captured, IPv4");
                assert!(other.captures(&app, Family::V6, 8080), "pod {number} is not captured, IPv6");
                let inbound = other.app.connect(pod.at(Family::V4, 8080)).unwrap().seen().listener;
                assert_eq!(inbound, 15006, "pod {number}");
                started.push(Started { pod, app, _sidecar: sidecar });
                // They are spread over the rounds.
                let share = u32::try_from(number).unwrap() * ROUNDS / u32::try_from(PODS).unwrap();
                while rounds() < share {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            (started, longest)
        });
        // `redirect list` fails where a pod is not as it was attached.
        assert_eq!(node.json(&["list"]).as_array().map(Vec::len), Some(PODS));
        for Started { pod, app, .. } in &started {
            assert!(other.captures(app, Family::V4, 8080), "{} is not captured at the end", pod.name());
            assert_eq!(other.app.connect(pod.at(Family::V6, 8080)).unwrap().seen().listener, 15006);
        }
        assert!(longest < LONGEST && rounds >= ROUNDS, "the longest ADD took {longest:?}; {rounds} rounds");
        println!("{PODS} pods in {rounds} rounds of replacing; the longest ADD took {longest:?}");
        drop(started);
        for pod in &pods {
            chain.del(&sandbox(pod), &Value::Null).unwrap();
        }
        assert_eq!(node.attached(), Vec::<String>::new());
    });
}
