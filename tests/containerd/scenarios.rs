//! What happens on the node, one function for each test.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use harness::runtime::CGROUPS;

use crate::kubelet::{self, INJECTED, Pod, Qos, Spec, run};
use crate::node::{Configuration, Node, Release, entries};
use crate::plugin::Call;

/// A test.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) releases: &'static [Release],
    pub(crate) configuration: Configuration,
    pub(crate) run: fn(&mut Node) -> Result<()>,
}

const BOTH: &[Release] = &[Release::Installed, Release::Later];
const WITHOUT_API: Configuration = Configuration { version: "1.0.0", pod_source: "annotations" };

/// All tests.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "traffic", releases: BOTH, configuration: WITHOUT_API, run: traffic },
    Scenario { name: "new_sandbox", releases: BOTH, configuration: WITHOUT_API, run: new_sandbox },
    Scenario { name: "restart", releases: BOTH, configuration: WITHOUT_API, run: restart },
    Scenario { name: "refused", releases: BOTH, configuration: WITHOUT_API, run: refused },
    Scenario { name: "left_alone", releases: BOTH, configuration: WITHOUT_API, run: left_alone },
    Scenario {
        name: "no_agent",
        releases: BOTH,
        configuration: Configuration { pod_source: "kubernetes", ..WITHOUT_API },
        run: no_agent,
    },
    Scenario {
        name: "status",
        releases: &[Release::Later],
        configuration: Configuration { version: "1.1.0", ..WITHOUT_API },
        run: status,
    },
];

/// Sandboxes in the cgroups of all three classes; traffic both ways in both families; an exec probe; Stop
/// twice.
fn traffic(node: &mut Node) -> Result<()> {
    let specs = [("server", Qos::Guaranteed), ("client", Qos::Burstable), ("batch", Qos::BestEffort)];
    let specs = specs.map(|(name, qos)| Spec { qos, ..Spec::injected(name) });
    let pods = specs.iter().map(|spec| run(node, spec)).collect::<Result<Vec<_>>>()?;
    ensure!(node.attached()?.len() == 3, "attached: {:?}", node.attached()?);
    for client in &pods[1..] {
        both_ways(node, client, &pods[0])?;
        both_ways(node, &pods[0], client)?;
        ensure!(client.probe(node)?, "the exec probe of {} fails", client.spec.name);
    }
    pods[0].stop(node)?;
    pods[0].stop(node)?;
    pods.iter().try_for_each(|pod| pod.end(node))?;
    let calls = node.calls()?;
    ensure!(calls.iter().all(|call| call.code == 0), "a call failed");
    ensure!(of(&calls, "ADD").len() == 3, "ADD was called {} times", of(&calls, "ADD").len());
    nothing_left(node)
}

/// A pod's sandbox is made again: once after the old one was stopped, once beside it. The old one's late DELs
/// must not touch the new one.
fn new_sandbox(node: &mut Node) -> Result<()> {
    let server = run(node, &Spec::injected("server"))?;
    let first = run(node, &Spec::injected("client"))?;
    first.stop(node)?;
    let second = run(node, &Spec { attempt: 1, ..first.spec.clone() })?;
    first.remove(node)?;
    both_ways(node, &second, &server)?;
    // The kubelet has lost track of the second: it is still there when the third is made.
    let third = run(node, &Spec { attempt: 2, ..first.spec.clone() })?;
    second.stop(node)?;
    second.remove(node)?;
    both_ways(node, &third, &server)?;
    both_ways(node, &server, &third)?;
    late_del(&node.calls()?, &first.id, &second.id)?;
    third.end(node)?;
    server.end(node)?;
    nothing_left(node)
}

/// containerd ends and comes back while pods run: the plugin is not called, and the redirection goes on.
fn restart(node: &mut Node) -> Result<()> {
    let server = run(node, &Spec::injected("server"))?;
    let client = run(node, &Spec::injected("client"))?;
    let before = node.calls()?.len();
    node.runtime.restart_containerd()?;
    both_ways(node, &client, &server)?;
    let since = node.calls()?.split_off(before);
    ensure!(since.iter().all(|call| call.verb == "VERSION"), "the restart caused {since:?}");
    client.end(node)?;
    server.end(node)?;
    nothing_left(node)
}

/// An annotation that cannot be used: the sandbox is refused with our words, and leaves nothing.
fn refused(node: &mut Node) -> Result<()> {
    let bad = ("traffic.sidecar.istio.io/excludeOutboundPorts", "80,http");
    let spec = Spec { annotations: vec![INJECTED, bad], ..Spec::injected("typo") };
    let error = match kubelet::sandbox(node, &spec) {
        Ok(id) => anyhow::bail!("the sandbox {id} was made"),
        Err(error) => format!("{error:#}"),
    };
    for part in [bad.0, "http", "shop/typo"] {
        ensure!(error.contains(part), "the runtime's error does not say {part:?}: {error}");
    }
    let calls = node.calls()?;
    ensure!(of(&calls, "ADD").iter().all(|call| call.code != 0), "ADD did not fail");
    ensure!(!of(&calls, "DEL").is_empty(), "a failed ADD was not followed by DEL");
    kubelet::remove_cgroup(&spec)?;
    nothing_left(node)?;
    // The next pod, without the mistake, is made.
    let pod = run(node, &Spec::injected("typo"))?;
    pod.end(node)?;
    nothing_left(node)
}

/// Pods without a sidecar, and pods in the node's network, are as if we were not there.
fn left_alone(node: &mut Node) -> Result<()> {
    let server = run(node, &Spec::injected("server"))?;
    let before = node.calls()?.len();
    let host = run(node, &Spec { host_network: true, ..Spec::plain("host") })?;
    ensure!(node.calls()?.len() == before, "the plugin was called for a pod in the node's network");
    let plain = run(node, &Spec::plain("plain"))?;
    let add = node.calls()?.pop().context("the plugin was not called")?;
    ensure!(add.code == 0 && add.container == plain.id, "{add:?}");
    ensure!(node.attached()?.len() == 1, "attached: {:?}", node.attached()?);
    for client in [&host, &plain] {
        let got = client.get(node, server.at(0))?;
        // It dialled the server's Envoy itself; none of its own is between.
        let entry = server.logged(node, |entry| entry.client == got.local)?;
        ensure!(entry.original_dst == server.at(0), "{entry:?}");
    }
    // A redirected pod reaches them as well; no Envoy is on the other side.
    let got = server.get(node, plain.at(0))?;
    ensure!(got.served == server.ips[0], "{got:?}");
    for pod in [&host, &plain, &server] {
        pod.end(node)?;
    }
    nothing_left(node)
}

/// Questions about pods get no answer: those without a sidecar start all the same, the others are refused.
fn no_agent(node: &mut Node) -> Result<()> {
    let plain = run(node, &Spec::plain("plain"))?;
    let spec = Spec::injected("meshed");
    let error = match kubelet::sandbox(node, &spec) {
        Ok(id) => anyhow::bail!("the sandbox {id} was made"),
        Err(error) => format!("{error:#}"),
    };
    for part in ["agent.sock", "shop/meshed"] {
        ensure!(error.contains(part), "the runtime's error does not say {part:?}: {error}");
    }
    kubelet::remove_cgroup(&spec)?;
    plain.end(node)?;
    nothing_left(node)
}

/// With a list of version 1.1.0 containerd 2.1 asks for STATUS before it says that the network is ready.
fn status(node: &mut Node) -> Result<()> {
    let server = run(node, &Spec::injected("server"))?;
    let client = run(node, &Spec::injected("client"))?;
    both_ways(node, &client, &server)?;
    let calls = node.calls()?;
    let status = of(&calls, "STATUS");
    ensure!(!status.is_empty(), "STATUS was not called");
    ensure!(
        status.iter().all(|call| call.code == 0 && call.answer.trim().is_empty()),
        "STATUS has an answer: {status:?}"
    );
    ensure!(of(&calls, "ADD").iter().all(|call| call.version == "1.1.0" && call.cgroup_path), "{calls:?}");
    client.end(node)?;
    server.end(node)?;
    nothing_left(node)
}

/// Requests in both families, and what client, server and both Envoys say about them.
fn both_ways(node: &Node, client: &Pod, server: &Pod) -> Result<()> {
    for (family, upstream) in [(0, "127.0.0.6"), (1, "::6")] {
        let to = server.at(family);
        let got = client.get(node, to)?;
        ensure!(got.peer == to, "the application believes to be connected to {} instead of {to}", got.peer);
        ensure!(got.local.ip() == client.ips[family], "{got:?}: not the address of {client:?}");
        // The server's Envoy connects from the address that marks what has been through it.
        ensure!(got.served == upstream.parse::<IpAddr>()?, "the server saw {}", got.served);
        let out = client.logged(node, |entry| entry.client == got.local)?;
        ensure!(out.listener.starts_with("virtualOutbound") && out.original_dst == to, "{out:?}");
        let from = out.upstream_local.context("the client's Envoy did not connect")?;
        let inbound = server.logged(node, |entry| entry.client == from)?;
        ensure!(inbound.listener.starts_with("virtualInbound") && inbound.original_dst == to, "{inbound:?}");
        ensure!(inbound.client.ip() == client.ips[family], "{inbound:?}: not the address of {client:?}");
    }
    ensure!(node.guarded()? == 0, "the guard has caught something where everything is in order");
    Ok(())
}

fn of<'a>(calls: &'a [Call], verb: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.verb == verb).collect()
}

/// The new sandbox was added before the old one was deleted for the last time.
fn late_del(calls: &[Call], old: &str, new: &str) -> Result<()> {
    let add = calls.iter().position(|call| call.verb == "ADD" && call.container == new);
    let del = calls.iter().rposition(|call| call.verb == "DEL" && call.container == old);
    ensure!(add.is_some() && add < del, "no late DEL: ADD of {new} is call {add:?}, DEL of {old} {del:?}");
    ensure!(calls.iter().all(|call| call.code == 0), "a call failed");
    Ok(())
}

/// No pod is there any more, and nothing of one.
fn nothing_left(node: &Node) -> Result<()> {
    let left = node.of_pods()?;
    ensure!(left.is_empty(), "left on the node:\n  {}", left.join("\n  "));
    for class in ["", "burstable", "besteffort"] {
        let dir = Path::new(CGROUPS).join("kubepods").join(class);
        let pods: Vec<_> = entries(&dir)?.into_iter().filter(|name| name.starts_with("pod")).collect();
        ensure!(pods.is_empty(), "cgroups left in {}: {pods:?}", dir.display());
    }
    Ok(())
}
