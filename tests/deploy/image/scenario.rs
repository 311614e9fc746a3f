//! What happens on the node: a pod is there already, the agent comes, repairs it and makes the node ready;
//! the next pod is redirected by the plugin; the agent ends and nothing changes; the entry is taken out on
//! request.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use apiserver::Kind;
use harness::runtime::cri::messages::NAMESPACE_CONTAINER;
use serde_json::{Value, json};

use crate::node::{self, INJECTED, NAME, Node, Pod, probe};
use redirect_deploy_tests::helm::Helm;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(node: &Node) -> Result<()> {
    let chart = Helm::start().render(&json!({}));
    node.import(&node::shipped(&node::image())?)?;
    let begun = Instant::now();
    // It started before the agent, and with it before the plugin.
    let mut early = node.sandbox("early", &[INJECTED], NAMESPACE_CONTAINER)?;
    node.fill(&mut early)?;
    tell(node, &early);
    let agent = node.agent(&chart)?;
    let port = chart.container()["ports"][0]["containerPort"].as_u64().and_then(|port| port.try_into().ok());
    let port: u16 = port.unwrap_or_default();
    until("it lives", || probe(&agent.ip, port, "/healthz").is_some_and(|(status, _)| status == 200))?;
    let mut last = None;
    let ready = until("it is ready", || {
        last = probe(&agent.ip, port, "/readyz");
        last.as_ref().is_some_and(|(status, _)| *status == 200)
    });
    ensure!(ready.is_ok(), "not ready: {last:?}");
    println!("ready {:.1} s after the first pod was asked for", begun.elapsed().as_secs_f64());
    installed(node)?;
    until("the pod that was there is redirected", || attached(node, &agent).contains(&early.name))?;
    let reasons = || node.api.events_about("early").into_iter().map(|(reason, _)| reason).collect::<Vec<_>>();
    until("an event says so", || reasons() == ["RepairBrokenPod"])?;
    let late = Pod { name: "late".into(), sandbox: String::new(), ip: String::new(), container: None };
    tell(node, &late);
    let late = node.sandbox("late", &[INJECTED], NAMESPACE_CONTAINER)?;
    ensure!(
        attached(node, &agent).contains(&late.name),
        "the plugin redirects: {:?}",
        attached(node, &agent)
    );
    let plain = node.sandbox("plain", &[], NAMESPACE_CONTAINER)?;
    ensure!(attached(node, &agent).len() == 2, "{:?}", attached(node, &agent));
    let page = probe(&agent.ip, port, "/metrics").map(|(_, page)| page).unwrap_or_default();
    ensure!(page.contains("redirect_cni_pods_enrolled 2"), "{page}");
    verified(node, &agent)?;
    asked(node)?;
    node.kill(&agent)?;
    // Nothing goes with it.
    installed(node)?;
    for pod in [&early, &late, &plain, &agent] {
        node.end(pod)?;
    }
    Ok(())
}

/// Without directories and configuration files the tool finds both by asking the runtime.
fn asked(node: &Node) -> Result<()> {
    let mut command = std::process::Command::new(harness::binary("redirect"));
    command.args(["--output", "json", "node", "enable", "--cri-socket"]).arg(node.socket());
    // The keys are those that the entry has, and the plugin is the one that is there.
    command.arg("--plugin-conf").arg(node.entry()).arg("--plugin").arg(node.bin_dir().join("redirect-cni"));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(&said)?;
    let file = node.conf_dir().join("10-mesh.conflist");
    ensure!(answer["file"] == json!(file), "{said} {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The node tries itself, with what the container may do.
fn verified(node: &Node, agent: &Pod) -> Result<()> {
    let report = node.redirect(agent, &["verify"])?;
    ensure!(report["passed"] == true, "{report:#}");
    Ok(())
}

/// The plugin of the image is beside the others, and its entry last.
fn installed(node: &Node) -> Result<()> {
    let list = node.list()?;
    let types: Vec<_> =
        list["plugins"].as_array().into_iter().flatten().map(|one| one["type"].clone()).collect();
    ensure!(types.last() == Some(&json!("redirect-cni")) && types.len() == 3, "{list}");
    let there = fs::read(node.bin_dir().join("redirect-cni"))?;
    ensure!(fs::read(node::shipped("redirect-cni")?)? == there, "another plugin");
    Ok(())
}

/// Pods that are redirected, by name.
pub(crate) fn attached(node: &Node, agent: &Pod) -> Vec<String> {
    let list = node.redirect(agent, &["list"]).unwrap_or_default();
    let name = |one: &Value| one["pod"]["name"].as_str().map(str::to_owned);
    list.as_array().into_iter().flatten().filter_map(name).collect()
}

/// Tells the API server of a pod with a sidecar.
pub(crate) fn tell(node: &Node, pod: &Pod) {
    let mut object = json!({
        "metadata": {
            "name": pod.name, "namespace": "shop", "uid": node.uid(&pod.name),
            "annotations": { (INJECTED.0): INJECTED.1 },
        },
        "spec": {
            "nodeName": NAME,
            "containers": [
                { "name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"] },
                { "name": "web", "image": "web" },
            ],
        },
        "status": { "phase": "Pending" },
    });
    if !pod.ip.is_empty() {
        object["status"] = json!({ "phase": "Running", "podIPs": [{ "ip": pod.ip }] });
    }
    node.api.store().put(Kind::PODS, object);
}

/// Waits for something, and says what did not come.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
