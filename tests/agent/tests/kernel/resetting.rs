//! Connections that were open before a pod was repaired: they go on, or those around the sidecar are ended.

use harness::{Errno, Family, Process, Service, Socket, kernel_test};
use serde_json::json;

use super::{Other, World};
use crate::driver::until;

/// Echo in the other pod: captured, and excluded by an annotation.
const OUT: [u16; 2] = [8090, 8091];
/// Echo in the pod: captured, and excluded.
const IN: [u16; 2] = [8080, 9090];

/// The pod's connections from before.
struct Before {
    /// They go around the sidecar.
    around: Vec<(&'static str, Socket)>,
    /// What the policy lets pass, what is inside the pod, and the sidecar's own.
    rightly: Vec<(&'static str, Socket)>,
}

fn is_alive(socket: &Socket) -> Result<(), Errno> {
    socket.send(b"still there?")?;
    socket.receive_within(64, 2000).map(drop)
}

#[test]
fn connections_from_before_a_repair_go_on_or_those_around_the_sidecar_are_reset() {
    for reset in [false, true] {
        kernel_test(|node| {
            let world = World::new(node);
            let (pod, other) = (node.pod("web"), Other::new(node));
            let (_sidecar, app, proxy): (_, Process, Process) = (pod.sidecar(), pod.app(), pod.proxy());
            for family in Family::ALL {
                other.app.serve(&OUT.map(|port| other.pod.at(family, port)), Service::Echo).unwrap();
                app.serve(&IN.map(|port| pod.at(family, port)), Service::Echo).unwrap();
            }
            let dial = |from: &Process, to| from.connect(to).unwrap();
            let before = Before {
                around: vec![
                    ("out, IPv4", dial(&app, other.pod.at(Family::V4, OUT[0]))),
                    ("out, IPv6", dial(&app, other.pod.at(Family::V6, OUT[0]))),
                    ("in, IPv4", dial(&other.app, pod.at(Family::V4, IN[0]))),
                    ("in, IPv6", dial(&other.app, pod.at(Family::V6, IN[0]))),
                ],
                rightly: vec![
                    ("out, excluded", dial(&app, other.pod.at(Family::V4, OUT[1]))),
                    ("in, excluded", dial(&other.app, pod.at(Family::V6, IN[1]))),
                    ("inside", dial(&app, pod.at(Family::V4, IN[0]))),
                    ("the sidecar's", dial(&proxy, other.pod.at(Family::V4, OUT[0]))),
                ],
            };
            world.tell(&pod, |object| {
                let annotations = &mut object["metadata"]["annotations"];
                annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!(OUT[1].to_string());
                annotations["traffic.sidecar.istio.io/excludeInboundPorts"] = json!(IN[1].to_string());
            });
            let arguments =
                if reset { &["--repair-pods", "--reset-connections"][..] } else { &["--repair-pods"] };
            let _agent = world.agent(arguments);
            until("an event says so", || !world.reasons(&pod).is_empty());
            let (reason, note) = world.api.events_about("web").remove(0);
            let said = if reset { "were reset: 4" } else { "go on as they were." };
            assert!(reason == "RepairBrokenPod" && note.ends_with(said), "{reason}: {note}");
            for (what, socket) in &before.around {
                let alive = is_alive(socket);
                assert_eq!(alive.is_ok(), !reset, "{what}: {alive:?}");
            }
            for (what, socket) in &before.rightly {
                assert_eq!(is_alive(socket), Ok(()), "{what}");
            }
            assert!(other.captures(&app, Family::V4, OUT[0]) && other.captures(&app, Family::V6, OUT[0]));
        });
    }
}
