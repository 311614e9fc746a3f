//! `kubectl redirect`: the same tool from outside the cluster. It finds the node of a pod and the agent
//! there, and runs a verb in the agent's container. kubectl itself is asked for everything, so that its
//! configuration, its contexts and its credentials count.
//!
//! kubectl knows the program by its name `kubectl-redirect`, and asks `kubectl_complete-redirect` for
//! completions. Both are links to this program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;

/// What the program is called as a plugin.
const PLUGIN: &str = "kubectl-redirect";
/// What it is called when completions are wanted.
const COMPLETER: &str = "kubectl_complete-redirect";
/// How agents' pods are known.
const AGENTS: &str = "app.kubernetes.io/name=redirect-cni,k8s-app=istio-cni-node";
/// kubectl reads it at the end of completions: no file names.
const NO_FILES: &str = ":4";

/// Look at a pod's redirection from outside the cluster.
#[derive(Debug, Parser)]
#[command(name = "kubectl redirect", bin_name = "kubectl redirect", version)]
struct Args {
    /// What to run on the pod's node.
    #[arg(value_enum)]
    verb: Verb,
    /// The pod's name, or pod/NAME.
    pod: String,
    /// The pod's namespace; else the context's.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Where the agents are; else in the namespace where they are found.
    #[arg(long, value_name = "NAME")]
    agent_namespace: Option<String>,
    /// The context of kubectl's configuration.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// kubectl's configuration.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<OsString>,
    /// Further arguments of the verb, for example --dst 10.0.0.7:80.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Verbs that look and change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verb {
    /// The verdict for one connection, and the rule and annotation that gave it
    Explain,
    /// Live records of every decision
    Trace,
    /// Policy, links, counters
    Show,
    /// Counters by verdict
    Stats,
    /// Captured connections, with the destinations that the applications dialled
    Connections,
}

impl Verb {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The way into the cluster.
struct Cluster {
    options: Vec<OsString>,
}

/// Runs as a plugin of kubectl, if this program was started as one.
pub(crate) fn as_plugin() -> Option<Result<ExitCode>> {
    let own = std::env::args_os().next()?;
    match Path::new(&own).file_name()?.to_str()? {
        PLUGIN => Some(run(&Args::parse())),
        COMPLETER => Some(complete(&std::env::args().skip(1).collect::<Vec<_>>())),
        _ => None,
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::of(args);
    let name = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let pod = cluster.get(&[&["pod", name], namespace(args.namespace.as_deref()).as_slice()].concat())?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let namespace = text(&pod["metadata"]["namespace"]).context("the pod has no namespace")?;
    let node = text(&pod["spec"]["nodeName"]).with_context(|| {
        format!("pod {namespace}/{name} is on no node yet: see `kubectl describe pod {name}`")
    })?;
    let (agent_namespace, agent) = cluster.agent(&node, args.agent_namespace.as_deref())?;
    let interactive = args.verb == Verb::Trace;
    let mut command = cluster.kubectl();
    command.args(["exec", "--namespace", &agent_namespace, &agent, "--container", "agent"]);
    command.args(interactive.then_some("--stdin"));
    command
        .args(["--", "/usr/bin/redirect", &args.verb.name(), &format!("{namespace}/{name}")])
        .args(&args.rest);
    Err(command.exec()).context("cannot start kubectl")
}

fn namespace(name: Option<&str>) -> Vec<&str> {
    name.map(|name| vec!["--namespace", name]).unwrap_or_default()
}

impl Cluster {
    fn of(args: &Args) -> Cluster {
        let mut options = Vec::new();
        for (option, value) in [
            ("--context", args.context.as_ref().map(OsString::from)),
            ("--kubeconfig", args.kubeconfig.clone()),
        ] {
            options.extend(value.into_iter().flat_map(|value| [OsString::from(option), value]));
        }
        Cluster { options }
    }

    fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.options);
        command
    }

    fn get(&self, what: &[&str]) -> Result<Value> {
        let output = self.kubectl().arg("get").args(what).args(["--output", "json"]).output();
        let output = output.context("cannot start kubectl; it must be in the PATH")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl get {}: {}", what.join(" "), complaint.trim());
        serde_json::from_slice(&output.stdout).context("kubectl's answer is not JSON")
    }

    /// Namespace and name of the agent's pod on a node.
    fn agent(&self, node: &str, wanted: Option<&str>) -> Result<(String, String)> {
        let field = format!("spec.nodeName={node}");
        let place = wanted.map_or_else(|| vec!["--all-namespaces"], |name| vec!["--namespace", name]);
        let query = [&["pods", "--selector", AGENTS, "--field-selector", &field], place.as_slice()].concat();
        let found = self.get(&query)?;
        let running = |pod: &&Value| pod["status"]["phase"] == "Running";
        let Some(agent) = found["items"].as_array().into_iter().flatten().find(running) else {
            bail!(
                "no agent of redirect-cni runs on node {node} ({AGENTS}): is the chart installed? Without it run \
                 `redirect` on the node itself"
            )
        };
        let text = |key: &str| agent["metadata"][key].as_str().map(str::to_owned);
        text("namespace").zip(text("name")).context("the agent's pod has no name")
    }
}

/// Prints what may follow: verbs, then names of pods. The last word is what was typed of it so far.
fn complete(words: &[String]) -> Result<ExitCode> {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let named = before.windows(2).find(|pair| ["-n", "--namespace"].contains(&pair[0].as_str()));
    let options = before.iter().filter(|word| word.starts_with('-')).count();
    let positional = before.len() - options - usize::from(named.is_some());
    let candidates = match positional {
        0 => Verb::value_variants().iter().map(|verb| verb.name()).collect(),
        1 => pods(named.map(|pair| pair[1].as_str()))?,
        _ => Vec::new(),
    };
    candidates.iter().filter(|name| name.starts_with(last)).for_each(|name| println!("{name}"));
    println!("{NO_FILES}");
    Ok(ExitCode::SUCCESS)
}

fn pods(of: Option<&str>) -> Result<Vec<String>> {
    let found = Cluster { options: Vec::new() }.get(&[&["pods"], namespace(of).as_slice()].concat())?;
    let names = found["items"].as_array().into_iter().flatten();
    Ok(names.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}
