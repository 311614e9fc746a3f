//! `kubectl redirect`: through a real kubectl and the API server for tests, up to the command that kubectl
//! would run in the agent's container.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use apiserver::kubectl::Kubectl;
use apiserver::{ApiServer, Kind};
use serde_json::{Value, json};

/// A cluster, and a folder that is the PATH: the plugin's two names, and a kubectl that shows what it would
/// run.
struct Cluster {
    api: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Option<Cluster> {
        let (api, dir) = (ApiServer::start(), tempfile::tempdir().expect("a folder"));
        let kubeconfig = api.kubeconfig(dir.path());
        let real = Kubectl::find(&kubeconfig)?.command(&[]);
        let real = real.get_program().to_str().expect("a path");
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in\n*' exec '*) echo \"$*\" ;;\n*) exec '{real}' --kubeconfig '{}' \"$@\" ;;\nesac\n",
            kubeconfig.display()
        );
        let kubectl = dir.path().join("kubectl");
        fs::write(&kubectl, script).expect("a script");
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("it may be run");
        for name in ["kubectl-redirect", "kubectl_complete-redirect"] {
            symlink(harness::binary("redirect").canonicalize().expect("built"), dir.path().join(name))
                .expect("a link");
        }
        Some(Cluster { api, dir })
    }

    fn pod(&self, namespace: &str, name: &str, node: Option<&str>, labels: Value) {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": { "containers": [{ "name": "agent", "image": "x" }] }, "status": { "phase": "Running" },
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = json!(node);
        }
        self.api.store().put(Kind::PODS, pod);
    }

    fn agent(&self, name: &str, node: &str) {
        let labels = json!({ "app.kubernetes.io/name": "redirect-cni", "k8s-app": "istio-cni-node" });
        self.pod("istio-system", name, Some(node), labels);
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let path: PathBuf = self.dir.path().join(program);
        let all = format!("{}:/usr/bin:/bin", self.dir.path().display());
        // kubectl starts a plugin by its path.
        Command::new(path)
            .args(arguments)
            .env("PATH", all)
            .env("HOME", self.dir.path())
            .output()
            .expect("it starts")
    }
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_verb_runs_in_the_agent_of_the_pods_node() {
    let Some(cluster) = Cluster::start() else { return };
    for node in ["node-1", "node-2"] {
        cluster.agent(&format!("agent-on-{node}"), node);
    }
    cluster.pod("shop", "web-0", Some("node-2"), json!({}));
    cluster.pod("shop", "waiting", None, json!({}));
    cluster.pod("shop", "far", Some("node-3"), json!({}));
    let explain = ["explain", "web-0", "--namespace", "shop", "--", "--dst", "10.0.0.7:80"];
    assert_eq!(
        out(&cluster.run("kubectl-redirect", &explain)),
        "exec --namespace istio-system agent-on-node-2 --container agent -- /usr/bin/redirect explain shop/web-0 \
         --dst 10.0.0.7:80"
    );
    let trace = out(&cluster.run("kubectl-redirect", &["-n", "shop", "trace", "pod/web-0"]));
    assert!(trace.contains("--stdin -- /usr/bin/redirect trace shop/web-0"), "{trace}");
    let missing = complaint(&cluster.run("kubectl-redirect", &["show", "gone", "-n", "shop"]));
    assert!(missing.contains("\"gone\" not found"), "{missing}");
    let waiting = complaint(&cluster.run("kubectl-redirect", &["show", "waiting", "-n", "shop"]));
    assert!(waiting.contains("shop/waiting is on no node yet"), "{waiting}");
    let far = complaint(&cluster.run("kubectl-redirect", &["show", "far", "-n", "shop"]));
    assert!(far.contains("no agent of redirect-cni runs on node node-3"), "{far}");
    // What would change something is no verb of the plugin.
    assert_eq!(cluster.run("kubectl-redirect", &["detach", "web-0"]).status.code(), Some(2));
}

#[test]
fn verbs_and_pods_are_completed_from_the_api() {
    let Some(cluster) = Cluster::start() else { return };
    for name in ["web-0", "web-1", "cart-0"] {
        cluster.pod("shop", name, Some("node-1"), json!({}));
    }
    let complete = |words: &[&str]| -> Vec<String> {
        out(&cluster.run("kubectl_complete-redirect", words)).lines().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["s"]), ["show", "stats", ":4"]);
    assert_eq!(complete(&["show", "-n", "shop", "web"]), ["web-0", "web-1", ":4"]);
    assert_eq!(complete(&["-n", "shop", "show", ""]), ["cart-0", "web-0", "web-1", ":4"]);
    assert_eq!(complete(&["show", "-n", "shop", "web-0", ""]), [":4"]);
}
