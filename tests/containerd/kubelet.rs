//! The kubelet's part: pods' cgroups, sandboxes and containers, asked for as a kubelet does.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::User;
use harness::envoy::{Entry, HEALTH_PORT};
use harness::runtime::CGROUPS;
use harness::runtime::cri::messages::*;
use harness::runtime::{meshed, tool};

use crate::node::Node;

/// What the injector writes into a pod with a sidecar.
pub(crate) const INJECTED: (&str, &str) =
    ("sidecar.istio.io/status", r#"{"initContainers":null,"containers":["istio-proxy"]}"#);
/// A network namespace of the node's own.
const NAMESPACE_NODE: i32 = 2;
/// How long Envoys may take to become ready, and to write their logs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A quality-of-service class; it decides where the pod's cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) qos: Qos,
    pub(crate) annotations: Vec<(&'static str, &'static str)>,
    pub(crate) host_network: bool,
    pub(crate) attempt: u32,
}

impl Spec {
    /// A burstable pod with a sidecar.
    pub(crate) fn injected(name: &'static str) -> Spec {
        let annotations = vec![INJECTED];
        Spec { name, qos: Qos::Burstable, annotations, host_network: false, attempt: 0 }
    }

    /// A pod without an injected sidecar.
    pub(crate) fn plain(name: &'static str) -> Spec {
        Spec { annotations: Vec::new(), ..Spec::injected(name) }
    }

    fn uid(&self) -> String {
        format!("{}-0000-4000-8000-000000000001", self.name)
    }

    /// The pod's cgroup as the kubelet names it with the driver `cgroupfs`.
    pub(crate) fn cgroup(&self) -> String {
        let class = match self.qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "/burstable",
            Qos::BestEffort => "/besteffort",
        };
        format!("/kubepods{class}/pod{}", self.uid())
    }

    fn namespaces(&self) -> NamespaceOption {
        let network = if self.host_network { NAMESPACE_NODE } else { NAMESPACE_POD };
        NamespaceOption { network, pid: NAMESPACE_CONTAINER, ipc: NAMESPACE_POD, target_id: String::new() }
    }

    fn config(&self, logs: &Path) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: self.name.into(),
            uid: self.uid(),
            namespace: "shop".into(),
            attempt: self.attempt,
        };
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let security = LinuxSandboxSecurityContext { namespace_options: Some(self.namespaces()) };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: if self.host_network { String::new() } else { self.name.into() },
            log_directory: logs.display().to_string(),
            port_mappings: Vec::new(),
            labels: HashMap::new(),
            annotations: self.annotations.iter().map(owned).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup(),
                security_context: Some(security),
            }),
        }
    }
}

/// A pod whose sandbox runs, and its containers.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) spec: Spec,
    /// The sandbox's id.
    pub(crate) id: String,
    /// IPv4, then IPv6; none for a pod in the node's network.
    pub(crate) ips: Vec<IpAddr>,
    app: String,
}

/// What the client in a pod saw of one request.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    /// Its own address.
    pub(crate) local: SocketAddr,
    /// The address that it believes to be connected to.
    pub(crate) peer: SocketAddr,
    /// Who the server says has connected.
    pub(crate) served: IpAddr,
}

/// Makes a pod's cgroup, as a kubelet does before it asks for a sandbox, and the sandbox. Returns its id.
pub(crate) fn sandbox(node: &Node, spec: &Spec) -> Result<String> {
    node.runtime.make_cgroup(&spec.cgroup())?;
    node.cri().run_sandbox(spec.config(&node.runtime.logs()))
}

/// Runs a pod: its sandbox, an Envoy where it was injected, and the application; returns when Envoy is ready.
pub(crate) fn run(node: &Node, spec: &Spec) -> Result<Pod> {
    let id = sandbox(node, spec)?;
    let addresses = node.cri().addresses(&id)?.into_iter().filter(|ip| !ip.is_empty());
    let ips = addresses.map(|ip| Ok(ip.parse()?)).collect::<Result<_>>()?;
    let pod_config = spec.config(&node.runtime.logs());
    let proxy = spec.annotations.contains(&INJECTED);
    if proxy {
        let envoy = container(spec, "istio-proxy", meshed::envoy_command(), User::PROXY)?;
        node.cri().start_container(&id, envoy, pod_config.clone())?;
    }
    let command = vec![tool::PATH.to_owned(), "serve".to_owned()];
    let app = node.cri().start_container(&id, container(spec, "app", command, User::APP)?, pod_config)?;
    let pod = Pod { spec: spec.clone(), id, ips, app };
    let ready = |pod: &Pod| -> Result<bool> {
        if proxy { pod.probe(node) } else { Ok(pod.ips.is_empty() || pod.get(node, pod.at(0)).is_ok()) }
    };
    let deadline = Instant::now() + PATIENCE;
    while !ready(&pod)? {
        ensure!(Instant::now() < deadline, "the pod {} was not ready within {PATIENCE:?}", spec.name);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(pod)
}

impl Pod {
    /// The application at one of the pod's addresses.
    pub(crate) fn at(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.ips[family], tool::PORT)
    }

    /// An exec probe: whether Envoy says that it is ready, asked from within the application's container.
    pub(crate) fn probe(&self, node: &Node) -> Result<bool> {
        let health = format!("127.0.0.1:{HEALTH_PORT}");
        Ok(node.cri().exec(&self.app, &[tool::PATH, "get", &health, "/healthz/ready"])?.code == 0)
    }

    /// A request by the pod's application.
    pub(crate) fn get(&self, node: &Node, to: SocketAddr) -> Result<Got> {
        let got = node.cri().exec(&self.app, &[tool::PATH, "get", &to.to_string(), "/"])?;
        ensure!(got.code == 0, "{} asked {to} in vain: {}{}", self.spec.name, got.stdout, got.stderr);
        let ends = got.stdout.lines().next().unwrap_or_default().split_once(' ');
        let (local, peer) = ends.with_context(|| format!("the client printed {:?}", got.stdout))?;
        let served = got.stdout.lines().find_map(|line| line.strip_prefix("served "));
        let served = served.with_context(|| format!("not the server's answer: {:?}", got.stdout))?;
        Ok(Got { local: local.parse()?, peer: peer.parse()?, served: served.parse()? })
    }

    /// The entry in its Envoy's access log that `wanted` accepts.
    pub(crate) fn logged(&self, node: &Node, wanted: impl Fn(&Entry) -> bool) -> Result<Entry> {
        let path = node.runtime.logs().join(log_name(&self.spec, "istio-proxy"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let entries = meshed::access_log(&path)?;
            match entries.iter().find(|entry| wanted(entry)) {
                Some(entry) => return Ok(entry.clone()),
                None if Instant::now() > deadline => {
                    bail!("the Envoy of {} has not logged it: {entries:#?}", self.spec.name)
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// `StopPodSandbox`.
    pub(crate) fn stop(&self, node: &Node) -> Result<()> {
        let id = SandboxId { pod_sandbox_id: self.id.clone() };
        node.cri().call::<_, Empty>("StopPodSandbox", id).map(drop)
    }

    /// `RemovePodSandbox`.
    pub(crate) fn remove(&self, node: &Node) -> Result<()> {
        let id = SandboxId { pod_sandbox_id: self.id.clone() };
        node.cri().call::<_, Empty>("RemovePodSandbox", id).map(drop)
    }

    /// Stops and removes its sandbox, and removes its cgroup.
    pub(crate) fn end(&self, node: &Node) -> Result<()> {
        self.stop(node)?;
        self.remove(node)?;
        remove_cgroup(&self.spec)
    }
}

/// Removes a pod's cgroup, as the kubelet does when the pod has ended.
pub(crate) fn remove_cgroup(spec: &Spec) -> Result<()> {
    let path = PathBuf::from(format!("{CGROUPS}{}", spec.cgroup()));
    harness::cgroup::Cgroup::remove(&path).with_context(|| format!("removing {}", path.display()))
}

fn log_name(spec: &Spec, container: &str) -> String {
    format!("{}_{container}_{}.log", spec.name, spec.attempt)
}

fn container(spec: &Spec, name: &str, command: Vec<String>, user: User) -> Result<ContainerConfig> {
    let log = log_name(spec, name);
    meshed::container((name, spec.attempt), &log, command, user, spec.namespaces())
}
