//! Starts the agent, asks it as the plugin does, and makes the pods that it is asked about.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Kind};
use harness::{Node, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node that the agent runs on.
pub(crate) const NODE: &str = "node-1";

/// A cluster of an API server and a folder for the agent's files.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) dir: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        Cluster { api: ApiServer::start(), dir: TempDir::with_prefix("redirect-agent-").expect("a folder") }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.api.kubeconfig(self.dir.path())
    }

    /// Starts an agent and waits until it listens.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Agent {
        Agent::start(self.dir.path(), &self.kubeconfig(), arguments)
    }

    /// Makes a pod.
    pub(crate) fn pod(&self, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = injected(name);
        change(&mut pod);
        self.api.store().put(Kind::PODS, pod)
    }

    /// What the agent has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }
}

/// What `--repair-pods` needs. CAP_SYS_ADMIN, which setns(2) asks for, stands for CAP_BPF as well
/// (`bpf_capable()` since Linux 5.8).
pub(crate) const CAPABILITIES: [&str; 3] = ["net_admin", "sys_admin", "sys_ptrace"];

/// `redirect` with these capabilities and no others.
pub(crate) fn with_capabilities(node: &Node, capabilities: &[&str]) -> Command {
    let mut set = "-all".to_owned();
    for capability in capabilities {
        set += &format!(",+{capability}");
    }
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", &format!("--bounding-set={set}"), "--"]);
    command.arg(binary("redirect")).arg("--bpffs").arg(node.bpffs());
    command.arg("--state-dir").arg(node.state_dir());
    command
}

/// A pod with a sidecar on [`NODE`].
pub(crate) fn injected(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "labels": { "app": "web" },
            "annotations": { "sidecar.istio.io/status": "{}" },
        },
        "spec": {
            "nodeName": NODE,
            "initContainers": [{ "name": "istio-validation", "image": "proxy" }],
            "containers": [
                { "name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"] },
                { "name": "web", "image": "web", "env": [{ "name": "PASSWORD", "value": "hunter2" }] },
            ],
        },
        "status": { "phase": "Pending" },
    })
}

/// `redirect agent` as a process.
pub(crate) struct Agent {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Agent {
    fn start(dir: &Path, kubeconfig: &Path, arguments: &[&str]) -> Agent {
        let mut command = Command::new(binary("redirect"));
        // No programs: these tests need no kernel, and must not touch the machine's.
        command.arg("--state-dir").arg(dir.join("state")).arg("--bpffs").arg(dir.join("bpf"));
        Agent::start_on(command, dir, kubeconfig, arguments)
    }

    /// Starts it with `command`, which is `redirect` with its global options; socket and log are in `dir`.
    pub(crate) fn start_on(mut command: Command, dir: &Path, kubeconfig: &Path, arguments: &[&str]) -> Agent {
        let socket = dir.join("agent.sock");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("agent.log")).unwrap();
        let child = command
            .arg("agent")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--node-name", NODE, "--socket"])
            .arg(&socket)
            .args(arguments)
            .stderr(Stdio::from(log))
            .spawn()
            .expect("start redirect agent");
        let agent = Agent { child, socket };
        until("the agent listens", || UnixStream::connect(&agent.socket).is_ok());
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for a pod by its name and, where one is given, its uid.
    pub(crate) fn ask(&self, name: &str, uid: Option<&str>, wait: Duration) -> Value {
        let mut stream = UnixStream::connect(&self.socket).expect("connect to the agent");
        let wait = u64::try_from(wait.as_millis()).unwrap();
        let mut question = json!({ "version": 1, "namespace": "shop", "name": name, "waitMs": wait });
        if let Some(uid) = uid {
            question["uid"] = json!(uid);
        }
        stream.write_all(format!("{question}\n").as_bytes()).expect("ask the agent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("an answer is JSON")
    }

    /// Asks for a pod that the agent must know.
    #[track_caller]
    pub(crate) fn knows(&self, name: &str) -> Value {
        let answer = self.ask(name, None, Duration::from_secs(20));
        assert!(answer["pod"]["containers"].is_array(), "{answer}");
        answer["pod"].clone()
    }

    /// Stops it, and waits for the end.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let _ = kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM);
        self.child.wait().expect("wait for the agent").code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until something is so, for twenty seconds at most.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl FnMut() -> bool) {
    until_within(Duration::from_secs(20), what, is_so);
}

/// Waits until something is so, for so long at most.
#[track_caller]
pub(crate) fn until_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}
