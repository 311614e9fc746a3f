//! A chain of CNI plugins run as a container runtime runs it: real binaries, the configuration on standard
//! input, the call in `CNI_*` variables, each ADD's result handed to the next plugin, DEL in reverse.
//!
//! The plugins act on the network namespace of the calling thread: that is the node.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// Where distributions put the standard plugins.
pub const STANDARD_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A network configuration list and where its plugins are.
#[derive(Clone, Debug)]
pub struct Chain {
    list: Value,
    dirs: Vec<PathBuf>,
}

/// What a runtime knows about a sandbox when it calls the plugins.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`
    pub id: String,
    /// `CNI_NETNS`; none for the late DEL of a sandbox whose namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `K8S_POD_NAMESPACE`
    pub pod_namespace: String,
    /// `K8S_POD_NAME`
    pub pod_name: String,
    /// `K8S_POD_UID`
    pub pod_uid: String,
    /// The pod's annotations, given to plugins with the capability `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
    /// The pod-level cgroup below the cgroup2 mount, given to plugins with the capability `cgroupPath`.
    pub cgroup_path: Option<String>,
}

/// A plugin's refusal, in the words of its error JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The plugin's type.
    pub plugin: String,
    /// The verb.
    pub verb: String,
    /// The specification's error code, 0 where the plugin printed no error JSON.
    pub code: u64,
    /// `msg` and `details`.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} failed with code {}: {}", self.plugin, self.verb, self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

impl Chain {
    /// A chain from a network configuration list (the JSON of a `.conflist` file). Plugins are looked up in
    /// `dirs` and then where distributions put the standard ones.
    ///
    /// # Errors
    /// If the list has no name, version or plugins.
    pub fn new(list: Value, dirs: &[&Path]) -> Result<Chain> {
        for (key, found) in [
            ("name", list["name"].is_string()),
            ("cniVersion", list["cniVersion"].is_string()),
            ("plugins", list["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty())),
        ] {
            if !found {
                bail!("the network configuration list lacks `{key}`: {list}");
            }
        }
        let dirs = dirs.iter().copied().chain(STANDARD_DIRS.map(Path::new)).map(Path::to_owned).collect();
        Ok(Chain { list, dirs })
    }

    /// Adds the sandbox to the network; the result is the last plugin's. When a plugin refuses, the whole
    /// chain is called with DEL, as runtimes do.
    ///
    /// # Errors
    /// A [`Refusal`] of the plugin that failed, or a plugin that cannot be run.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            match self.call("ADD", plugin, sandbox, &result) {
                Ok(next) => result = next,
                Err(refusal) => {
                    self.del(sandbox, &Value::Null)
                        .context(format!("and the clean-up after `{refusal:#}`"))?;
                    return Err(refusal);
                }
            }
        }
        Ok(result)
    }

    /// Asks every plugin whether the sandbox is still as `result`, the ADD's, says.
    ///
    /// # Errors
    /// As [`Chain::add`].
    pub fn check(&self, sandbox: &Sandbox, result: &Value) -> Result<()> {
        self.plugins().try_for_each(|plugin| self.call("CHECK", plugin, sandbox, result).map(drop))
    }

    /// Removes the sandbox from the network. `result` is the ADD's, or null where there is none.
    ///
    /// # Errors
    /// As [`Chain::add`]; the plugins before the one that failed were not called.
    pub fn del(&self, sandbox: &Sandbox, result: &Value) -> Result<()> {
        self.plugins().rev().try_for_each(|plugin| self.call("DEL", plugin, sandbox, result).map(drop))
    }

    fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.list["plugins"].as_array().into_iter().flatten()
    }

    /// Runs one plugin and reads its answer (null where it printed nothing).
    fn call(&self, verb: &str, plugin: &Value, sandbox: &Sandbox, prev_result: &Value) -> Result<Value> {
        let kind = plugin["type"].as_str().with_context(|| format!("a plugin without `type`: {plugin}"))?;
        let binary = self.find(kind)?;
        let mut command = Command::new(&binary);
        command.env_clear().envs(sandbox.variables(verb)).env("CNI_PATH", std::env::join_paths(&self.dirs)?);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let config = self.config(plugin, sandbox, prev_result);
        let output =
            feed(command, &config).with_context(|| format!("running {} {verb}", binary.display()))?;
        if !output.status.success() {
            return Err(Refusal::new(kind, verb, &output).into());
        }
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "{kind} {verb} printed something that is no JSON: {}",
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }

    /// The configuration that one plugin gets: its own entry, the list's name and version, the capabilities
    /// that it declares and the result so far.
    fn config(&self, plugin: &Value, sandbox: &Sandbox, prev_result: &Value) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.list["name"].clone();
        config["cniVersion"] = self.list["cniVersion"].clone();
        let mut runtime = sandbox.capabilities();
        runtime.retain(|capability, _| plugin["capabilities"][capability] == json!(true));
        if !runtime.is_empty() {
            config["runtimeConfig"] = runtime.into();
        }
        if !prev_result.is_null() {
            config["prevResult"] = prev_result.clone();
        }
        config
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file()).with_context(|| {
            format!(
                "no CNI plugin `{kind}` in {:?}: `cargo xtask setup` installs the standard plugins",
                self.dirs
            )
        })
    }
}

impl Sandbox {
    fn variables(&self, verb: &str) -> Vec<(&'static str, String)> {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.pod_namespace, self.pod_name, self.id, self.pod_uid
        );
        let netns = self.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        vec![
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_ARGS", args),
        ]
    }

    fn capabilities(&self) -> Map<String, Value> {
        let mut all = Map::new();
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(self.annotations));
        if let Some(path) = &self.cgroup_path {
            all.insert("cgroupPath".into(), json!(path));
        }
        all
    }
}

impl Refusal {
    fn new(plugin: &str, verb: &str, output: &Output) -> Refusal {
        let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |key: &str| error[key].as_str().unwrap_or_default();
        let message = match (text("msg"), text("details")) {
            ("", "") => format!(
                "{}, stdout `{}`, stderr `{}`",
                output.status,
                String::from_utf8_lossy(&output.stdout).trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            (message, "") => message.to_owned(),
            (message, details) => format!("{message} ({details})"),
        };
        Refusal {
            plugin: plugin.into(),
            verb: verb.into(),
            code: error["code"].as_u64().unwrap_or(0),
            message,
        }
    }
}

/// Runs a command with JSON on standard input and collects what it prints.
fn feed(mut command: Command, input: &Value) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no pipe to its standard input")?;
    // A plugin may refuse before it has read everything: its own error says more than the broken pipe.
    let _ = stdin.write_all(input.to_string().as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// A list as on a node with a mesh: the standard `bridge` plugin with `host-local` addresses of both
/// families, and then `redirect-cni` with the given configuration. Leases are kept in `leases`.
#[must_use]
pub fn mesh_conflist(leases: &Path, subnets: [&str; 2], redirect: &Value) -> Value {
    let [v4, v6] = subnets;
    json!({
        "cniVersion": "1.0.0",
        "name": "mesh",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": leases,
                    "ranges": [[{ "subnet": v4 }], [{ "subnet": v6 }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            redirect,
        ],
    })
}
