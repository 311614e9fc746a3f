//! Real Envoys as sidecars, and the demo that people see first: what Envoy's access log says about
//! connections that nothing but the attached programs has steered to it.
//!
//! Without an Envoy in the cache (`cargo xtask setup mesh` puts it there) these tests fail: they are not
//! skipped.

mod demo;
mod languages;
mod outbound_and_inbound;
mod shapes;
mod stopped;
mod tproxy;

use harness::envoy::{Bootstrap, Envoy};
use harness::{Node, Pod};

/// The port that the applications of these tests serve on.
const APP_PORT: u16 = 8080;

/// A pod that is attached and has an Envoy.
fn with_envoy(node: &Node, name: &str, bootstrap: &Bootstrap) -> (Pod, Envoy) {
    let pod = node.pod(name);
    node.attach(&pod, &[]);
    let envoy = start_envoy(node, &pod, bootstrap);
    (pod, envoy)
}

fn start_envoy(node: &Node, pod: &Pod, bootstrap: &Bootstrap) -> Envoy {
    Envoy::start(pod.name(), pod.netns(), &pod.container("istio-proxy"), bootstrap, node.dir()).unwrap()
}
