//! The plugin as a runtime calls it: one process per call, from its start to its end.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::cgroup::Cgroup;
use harness::{Node, Pod, binary};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::load;
use crate::rules::input_of;

/// How long a process took, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// From before it was started until it had ended.
    pub(crate) wall: f64,
    /// Its own user and system time.
    pub(crate) cpu: f64,
}

impl Cost {
    /// Runs a command whose standard streams go nowhere.
    pub(crate) fn of(command: &mut Command) -> Result<Cost> {
        let start = load::now();
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let (status, cpu) = load::wait_for(child.id())?;
        let wall = load::now() - start;
        ensure!(status == 0, "{command:?} ended with wait status {status:#x}");
        Ok(Cost { wall: wall.as_secs_f64() * 1e3, cpu: cpu.as_secs_f64() * 1e3 })
    }

    /// One after the other.
    pub(crate) fn and(self, next: Cost) -> Cost {
        Cost { wall: self.wall + next.wall, cpu: self.cpu + next.cpu }
    }
}

/// A call of the plugin for a pod. The injector's annotations say that the pod has a sidecar and what to
/// exclude.
pub(crate) fn call(node: &Node, pod: &Pod, verb: &str, excluded: &[IpNet]) -> Result<Command> {
    call_with(pod, verb, &configuration(node, pod, excluded)?)
}

fn call_with(pod: &Pod, verb: &str, configuration: &Value) -> Result<Command> {
    let mut command = Command::new(binary("redirect-cni"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", "/opt/cni/bin");
    let args = format!("K8S_POD_NAMESPACE=bench;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={0}", pod.name());
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", pod.name()).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", pod.netns().path()).env("CNI_ARGS", args);
    command.stdin(input_of(&configuration.to_string())?);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// Enrols a pod.
pub(crate) fn add(node: &Node, pod: &Pod, excluded: &[IpNet]) -> Result<Cost> {
    Cost::of(&mut call(node, pod, "ADD", excluded)?).with_context(|| format!("ADD of {}", pod.name()))
}

/// Enrols a pod without the guard.
pub(crate) fn add_unguarded(node: &Node, pod: &Pod, excluded: &[IpNet]) -> Result<Cost> {
    let mut configuration = configuration(node, pod, excluded)?;
    configuration["guard"] = "off".into();
    Cost::of(&mut call_with(pod, "ADD", &configuration)?).with_context(|| format!("ADD of {}", pod.name()))
}

/// Enrols a pod in TPROXY mode.
pub(crate) fn add_tproxy(node: &Node, pod: &Pod) -> Result<Cost> {
    let mut configuration = configuration(node, pod, &[])?;
    let annotations = &mut configuration["runtimeConfig"]["io.kubernetes.cri.pod-annotations"];
    annotations["sidecar.istio.io/interceptionMode"] = "TPROXY".into();
    Cost::of(&mut call_with(pod, "ADD", &configuration)?).with_context(|| format!("ADD of {}", pod.name()))
}

/// Takes it out again.
pub(crate) fn del(node: &Node, pod: &Pod) -> Result<Cost> {
    Cost::of(&mut call(node, pod, "DEL", &[])?).with_context(|| format!("DEL of {}", pod.name()))
}

/// Any plugin asked for the versions that it speaks.
pub(crate) fn version(plugin: &Path) -> Result<Cost> {
    let mut command = Command::new(plugin);
    command.env_clear().env("CNI_COMMAND", "VERSION").stdin(input_of(r#"{"cniVersion":"1.0.0"}"#)?);
    Cost::of(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn configuration(node: &Node, pod: &Pod, excluded: &[IpNet]) -> Result<Value> {
    let cgroup = pod.cgroup().strip_prefix(Cgroup::mount_point()).context("a pod's cgroup is in cgroup2")?;
    let ranges: Vec<String> = excluded.iter().map(ToString::to_string).collect();
    Ok(json!({
        "cniVersion": "1.0.0",
        "name": "mesh",
        "type": "redirect-cni",
        "podSource": "annotations",
        "bpffsRoot": node.bpffs(),
        "stateDir": node.state_dir(),
        "runtimeConfig": {
            "cgroupPath": format!("/{}", cgroup.display()),
            "io.kubernetes.cri.pod-annotations": {
                "sidecar.istio.io/status": r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#,
                "traffic.sidecar.istio.io/excludeOutboundIPRanges": ranges.join(","),
            },
        },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.netns().path() }],
            "ips": [
                { "interface": 0, "address": format!("{}/16", pod.ip4()) },
                { "interface": 0, "address": format!("{}/64", pod.ip6()) },
            ],
        },
    }))
}
