//! docs/install.md from nothing to the first meshed pod. Every command is taken from the page; each is timed.
//! The commands for a node run as they stand there; those for a cluster have stand-ins, because the node has
//! neither a registry nor a controller of DaemonSets.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use harness::runtime::cri::messages::NAMESPACE_CONTAINER;
use harness::runtime::{meshed, tool};
use redirect_deploy_tests::helm::{Helm, Rendered};
use redirect_deploy_tests::page::{blocks, page, rows, values};

use crate::debian::Debian;
use crate::node::{ADDRESS, INJECTED, Node, Pod, probe, shipped};
use crate::scenario::{attached, tell, until};

/// The page's mark of the table of times, and the time that all commands of a way may take: far more than
/// they do, so that a busy machine passes.
const TIMES: &str = "<!-- times -->";
const LIMIT: f64 = 120.0;
/// What the page says in words: a pod with a sidecar is started.
const START_A_POD: &str = "a pod with a sidecar starts";
/// The registry in the place of the page's word.
const REGISTRY: &str = "registry.example";

/// What was done so far, with seconds.
#[derive(Default)]
struct Steps(Vec<(String, f64)>);

impl Steps {
    fn take<T>(&mut self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = act().with_context(|| format!("the step {name:?} of docs/install.md"))?;
        self.0.push((name.to_owned(), begun.elapsed().as_secs_f64()));
        Ok(done)
    }

    /// Prints the steps, and compares them with the page's table, in which `column` is this way's.
    fn compare(&self, way: &str, column: usize) -> Result<()> {
        let sum: f64 = self.0.iter().map(|(_, seconds)| seconds).sum();
        println!("{way}: {} steps, {sum:.1} s", self.0.len());
        for (name, seconds) in &self.0 {
            println!("  {seconds:>6.2} s  {name}");
        }
        let table = rows(&page("install.md"), TIMES);
        let cells =
            table.iter().filter_map(|row| Some((row[0].trim_matches('`'), row.get(column)?.as_str())));
        let (sums, listed): (Vec<_>, Vec<_>) =
            cells.filter(|(_, cell)| !cell.is_empty()).partition(|(name, _)| *name == "all");
        let done: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        let listed: Vec<_> = listed.into_iter().map(|(name, _)| name).collect();
        ensure!(
            listed == done,
            "the table behind {TIMES} in docs/install.md lists other steps {way}: {listed:?} and not {done:?}"
        );
        ensure!(
            sums.iter().any(|(_, cell)| cell.starts_with(&format!("{} steps,", done.len()))),
            "the table behind {TIMES} in docs/install.md does not sum up {} steps {way}: {sums:?}",
            done.len()
        );
        ensure!(sum < LIMIT, "{sum:.1} s {way} are more than {LIMIT}");
        Ok(())
    }
}

/// The blocks for a node: to look first, to try it, to look at pods.
fn node_blocks() -> Result<[String; 3]> {
    let found = blocks(&page("install.md"), "sh node");
    found.try_into().map_err(|found| anyhow::anyhow!("docs/install.md has other blocks now: {found:?}"))
}

/// The way with packages, and back, on a small Debian.
pub(crate) fn with_packages(node: &Node) -> Result<()> {
    let [look, verify, list] = node_blocks()?;
    let found = blocks(&page("install.md"), "sh deb");
    let [install, uninstall] = &found[..] else { bail!("docs/install.md has other blocks now: {found:?}") };
    // What was downloaded: what the commands name.
    let files: BTreeSet<_> =
        [&look, install].into_iter().flat_map(|block| block.split_whitespace()).collect();
    let files: Vec<_> = files.into_iter().filter(|word| shipped(word).is_ok()).collect();
    let debian = Debian::new(node, &files)?;
    let mut steps = Steps::default();
    for line in [&look, install, &verify].into_iter().flat_map(|block| block.lines()) {
        steps.take(line, || debian.run(line))?;
    }
    let pod = steps.take(START_A_POD, || meshed_pod(node));
    let pod = pod.with_context(|| format!("{:?}", debian.run("redirect outcomes; redirect list")))?;
    let shown = list.lines().map(|line| steps.take(line, || debian.run(line))).collect::<Result<Vec<_>>>()?;
    ensure!(shown[0].contains("web-0") && shown[0].contains(" ok"), "not a meshed pod: {shown:?}");
    ensure!(shown[1].contains("enrolled"), "no outcome: {shown:?}");
    steps.compare("with packages", 1)?;
    node.end(&pod)?;
    for line in uninstall.lines() {
        debian.run(line)?;
    }
    ensure!(!node.list()?.to_string().contains("redirect-cni"), "the entry stays: {}", node.list()?);
    ensure!(!node.bin_dir().join("redirect-cni").exists(), "the plugin stays");
    Ok(())
}

/// The way with Helm. What is for the node is run in the agent's container.
pub(crate) fn with_helm(node: &Node) -> Result<()> {
    let [_, verify, list] = node_blocks()?;
    let found = blocks(&page("install.md"), "sh");
    let block = found.iter().find(|block| block.contains("helm install")).context("no `helm install`")?;
    let mut steps = Steps::default();
    let (mut chart, mut agent) = (None, None);
    for line in block.lines().filter(|line| !line.starts_with('#')) {
        steps.take(line, || stand_in(node, &line.replace("REGISTRY", REGISTRY), &mut chart, &mut agent))?;
    }
    let agent = agent.context("the page starts an agent")?;
    for line in verify.lines() {
        steps.take(line, || on_agent(node, &agent, line))?;
    }
    let web = Pod { name: "web-0".into(), sandbox: String::new(), ip: String::new(), container: None };
    tell(node, &web);
    let pod = steps.take(START_A_POD, || meshed_pod(node))?;
    let shown = list.lines().map(|line| steps.take(line, || on_agent(node, &agent, line)));
    let shown = shown.collect::<Result<Vec<_>>>()?;
    ensure!(attached(node, &agent) == ["web-0"], "not a meshed pod: {shown:?}");
    steps.compare("with Helm", 2)?;
    [&pod, &agent].into_iter().try_for_each(|pod| node.end(pod))
}

/// Does what a command for a cluster comes to on this node.
fn stand_in(node: &Node, line: &str, chart: &mut Option<Rendered>, agent: &mut Option<Pod>) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["skopeo", "copy", from, to] => {
            let archive = from.strip_prefix("oci-archive:").context("an archive")?;
            let name = to.strip_prefix("docker://").context("a name")?;
            node.import(&shipped(archive)?)?;
            let own = format!("docker.io/library/redirect-cni:{}", env!("CARGO_PKG_VERSION"));
            node.tag(&own, name)
        }
        ["helm", "install", _, archive, "--namespace", "istio-system", ..] => {
            let rendered = Helm::of(&shipped(archive)?).render(&values(line));
            *agent = Some(node.agent(&rendered)?);
            *chart = Some(rendered);
            Ok(())
        }
        ["kubectl", "--namespace", "istio-system", "rollout", "status", what] => {
            let (Some(chart), Some(agent)) = (chart, agent) else { bail!("nothing was installed yet") };
            let name = chart.one("DaemonSet")["metadata"]["name"].as_str().unwrap_or_default();
            ensure!(what == format!("daemonset/{name}"), "{what} is not the chart's {name}");
            let port = chart.container()["ports"][0]["containerPort"].as_u64().context("a port")?;
            let port = port.try_into()?;
            until("the agent is ready", || {
                probe(&agent.ip, port, "/readyz").is_some_and(|(status, _)| status == 200)
            })
        }
        _ => bail!("no stand-in for this command"),
    }
}

/// A command of the node, in the agent's container.
fn on_agent(node: &Node, agent: &Pod, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let arguments = words.strip_prefix(&["redirect"]).context("a command of the tool")?;
    let done = node.exec(agent, &[&["/usr/bin/redirect"], arguments].concat())?;
    ensure!(done.code == 0, "{done:?}");
    Ok(done.stdout)
}

/// A pod with a sidecar that is ready, and traffic both ways through it.
fn meshed_pod(node: &Node) -> Result<Pod> {
    let mut pod = node.sandbox("web-0", &[INJECTED], NAMESPACE_CONTAINER)?;
    node.mesh(&mut pod)?;
    let health = format!("127.0.0.1:{}", harness::envoy::HEALTH_PORT);
    let ready = [tool::PATH, "get", &health, "/healthz/ready"];
    until("the sidecar is ready", || node.exec(&pod, &ready).is_ok_and(|done| done.code == 0))?;
    // The other end of both is the node.
    std::thread::spawn(tool::serve);
    let to = format!("{ADDRESS}:{}", tool::PORT);
    until("the pod's request is answered", || {
        node.exec(&pod, &[tool::PATH, "get", &to, "/"]).is_ok_and(|done| done.code == 0)
    })?;
    let mut answer = String::new();
    until("the pod answers", || probe(&pod.ip, tool::PORT, "/").map(|(_, text)| answer = text).is_some())?;
    ensure!(answer.contains("served 127.0.0.6"), "the application saw another than its sidecar: {answer}");
    let through = |listener: &str, to: &str| {
        let log = meshed::access_log(&node.sidecar_log(&pod)).unwrap_or_default();
        log.iter().any(|entry| entry.listener.starts_with(listener) && entry.original_dst.to_string() == to)
    };
    until("it went out through the sidecar", || through("virtualOutbound", &to))?;
    let own = format!("{}:{}", pod.ip, tool::PORT);
    until("it came in through the sidecar", || through("virtualInbound", &own))?;
    Ok(pod)
}
