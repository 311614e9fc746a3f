//! The rights of the chart's role are those that the agent uses: each is asked for in its mode, and nothing
//! else is.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Kind};
use serde_json::{Value, json};

use redirect_deploy_tests::helm::{Helm, strings};

/// A group, a resource and a verb.
type Right = (String, String, String);

const NODE: &str = "node-1";

/// The agent as the chart starts it, but for the paths of this test.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path, api: &ApiServer, arguments: &[&str]) -> Agent {
        let mut command = Command::new(harness::binary("redirect"));
        command.arg("--bpffs").arg(dir.join("bpf")).arg("--state-dir").arg(dir.join("state")).arg("agent");
        command.arg("--kubeconfig").arg(api.kubeconfig(dir)).args(["--node-name", NODE, "--socket"]);
        command.arg(dir.join("agent.sock")).args(arguments.iter().filter(|argument| is_about_pods(argument)));
        Agent(command.stderr(Stdio::null()).spawn().expect("start the agent"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without those that say where things are on the node, and how the API server is found.
fn is_about_pods(argument: &str) -> bool {
    ["-pods", "--init-container-name", "--broken-pod", "--live-policy"]
        .iter()
        .any(|part| argument.contains(part))
}

/// A pod whose validation has failed, and one with istio-init, of which the agent tells by an event.
fn make_pods(api: &ApiServer) {
    for name in ["broken", "init"] {
        let init = if name == "init" { "istio-init" } else { "istio-validation" };
        let failed = json!({
            "name": init,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 126, "reason": "Error" } },
        });
        let pod = json!({
            "metadata": { "name": name, "namespace": "shop", "annotations": { "sidecar.istio.io/status": "{}" } },
            "spec": {
                "nodeName": NODE,
                "initContainers": [{ "name": init, "image": "proxy" }],
                "containers": [
                    { "name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"] },
                    { "name": "web", "image": "web" },
                ],
            },
            "status": { "phase": "Pending", "initContainerStatuses": [failed] },
        });
        api.store().put(Kind::PODS, pod);
    }
}

/// Asks for a pod that the watch does not show, so that it is fetched.
fn ask(dir: &Path) {
    let Ok(mut stream) = UnixStream::connect(dir.join("agent.sock")) else { return };
    let question = json!({ "version": 1, "namespace": "shop", "name": "other", "waitMs": 1000 });
    let mut line = String::new();
    if writeln!(stream, "{question}").is_ok() {
        let _ = BufReader::new(stream).read_line(&mut line);
    }
}

/// The right that a request needs, as the API server's authorizer sees it.
fn right_of(request: &str) -> Option<Right> {
    let (method, target) = request.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = match parts[0] {
        "api" => String::new(),
        _ => parts[1].to_owned(),
    };
    parts.drain(..if group.is_empty() { 2 } else { 3 });
    if parts.first() == Some(&"namespaces") {
        parts.drain(..2);
    }
    let resource = match parts.get(2) {
        Some(sub) => format!("{}/{sub}", parts.first()?),
        None => (*parts.first()?).to_owned(),
    };
    let verb = match (method, parts.len()) {
        ("GET", 1) if query.contains("watch=") => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => method,
    };
    Some((group, resource, verb.to_owned()))
}

fn granted(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    rights.insert((group.to_owned(), resource.to_owned(), verb.to_owned()));
                }
            }
        }
    }
    rights
}

#[test]
fn each_mode_has_the_rights_that_it_uses_and_no_other() {
    let mut helm = Helm::start();
    for repair in [
        json!({ "enabled": false }),
        json!({}),
        json!({ "repairPods": false, "labelPods": true }),
        json!({ "repairPods": false, "deletePods": true }),
    ] {
        let rendered = helm.render(&json!({ "repair": repair }));
        let mut granted = granted(rendered.one("ClusterRole"));
        // An event that comes again and again is counted by a patch of the first.
        assert!(granted.remove(&("events.k8s.io".into(), "events".into(), "patch".into())));
        let (dir, api) = (tempfile::tempdir().expect("a folder"), ApiServer::start());
        make_pods(&api);
        let _agent = Agent::start(dir.path(), &api, &rendered.arguments());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut used = BTreeSet::new();
        while used != granted && Instant::now() < deadline {
            ask(dir.path());
            used.extend(api.requests().iter().filter_map(|request| right_of(request)));
            sleep(Duration::from_millis(50));
        }
        // What comes after all is as much a use.
        sleep(Duration::from_secs(1));
        used.extend(api.requests().iter().filter_map(|request| right_of(request)));
        assert_eq!(used, granted, "{repair}");
    }
}
