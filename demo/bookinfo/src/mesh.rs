//! Bookinfo on the node: this plays the kubelet, which makes pods and containers, and the control plane,
//! which tells the Envoys where they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::envoy::Envoy;
use harness::runtime::Node;
use harness::runtime::cri::messages::PodSandboxConfig;
use serde_json::Value;

use crate::counts::Counters;
use crate::files::Files;
use crate::got::Got;
use crate::log;
use crate::node;
use crate::plan::WORKLOADS;
use crate::pods::{self, APP, PROXY, Spec};
use crate::report::PodRow;
use crate::trips::Logs;

/// How long an Envoy or an application may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// The node and what runs on it.
pub(crate) struct Mesh {
    node: Node,
    files: Files,
    envoy: PathBuf,
    pods: BTreeMap<String, Pod>,
}

/// A pod that runs.
struct Pod {
    spec: Spec,
    sandbox: String,
    config: PodSandboxConfig,
    ip: Ipv4Addr,
    containers: Containers,
}

/// A container that was started.
struct Container {
    id: String,
    log: PathBuf,
}

/// A pod's containers by their names.
type Containers = BTreeMap<&'static str, Container>;

impl Mesh {
    /// Makes the node, and what the pods will need.
    pub(crate) fn start(dir: &Path, cgroup: &Path) -> Result<Mesh> {
        let envoy = Envoy::find().context("there is no Envoy in the cache: run `cargo xtask setup mesh`")?;
        let node = node::start(dir, cgroup)?;
        let files = Files::create(node.dir().join("files"))?;
        Ok(Mesh { node, files, envoy, pods: BTreeMap::new() })
    }

    /// Makes all sandboxes, two at a time: most of the work is the runtime's.
    pub(crate) fn add_sandboxes(&mut self) -> Result<()> {
        let specs = pods::all();
        let added = in_parallel(&specs, |spec| self.add(spec, 0))?;
        self.pods.extend(specs.iter().map(|spec| spec.name.clone()).zip(added));
        self.files.publish(&self.ips())
    }

    /// Starts all containers and waits until the pods are ready.
    pub(crate) fn start_containers(&mut self) -> Result<()> {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        let started = in_parallel(&names, |name| self.containers_of(self.pod(name)?, 0))?;
        for (name, containers) in names.iter().zip(started) {
            self.pod_mut(name)?.containers = containers;
        }
        names.iter().try_for_each(|name| self.wait_until_ready(name))
    }

    /// The address of a pod.
    pub(crate) fn ip(&self, pod: &str) -> Result<Ipv4Addr> {
        Ok(self.pod(pod)?.ip)
    }

    /// The addresses of all pods.
    pub(crate) fn ips(&self) -> BTreeMap<String, Ipv4Addr> {
        self.pods.iter().map(|(name, pod)| (name.clone(), pod.ip)).collect()
    }

    /// The id of a pod's sandbox.
    pub(crate) fn sandbox(&self, pod: &str) -> Result<&str> {
        Ok(&self.pod(pod)?.sandbox)
    }

    /// The node's network namespace.
    pub(crate) fn netns(&self) -> Result<File> {
        node::netns()
    }

    /// What runs the containers.
    pub(crate) fn runtime(&self) -> Result<String> {
        self.node.cri().version()
    }

    /// The version of the Envoys.
    pub(crate) fn envoy(&self) -> Result<String> {
        Envoy::version(&self.envoy)
            .with_context(|| format!("{} does not tell its version", self.envoy.display()))
    }

    /// What `redirect` prints on the node.
    pub(crate) fn redirect(&self, arguments: &[&str]) -> Result<String> {
        self.node.redirect(arguments)
    }

    /// The same as JSON.
    pub(crate) fn redirect_json(&self, arguments: &[&str]) -> Result<Value> {
        self.node.redirect_json(arguments)
    }

    /// Makes a request from a container; `arguments` are those of `bookinfo-services get`.
    pub(crate) fn get(&self, pod: &str, container: &str, arguments: &[&str]) -> Result<Got> {
        let id = self.container(pod, container)?;
        let command = [&[pods::SERVICES_PATH, "get"], arguments].concat();
        let done = self.node.cri().exec(id, &command)?;
        Ok(Got { code: done.code, stdout: done.stdout, stderr: done.stderr })
    }

    /// Makes a request from the node itself, as a kubelet does.
    pub(crate) fn get_from_node(&self, url: &str) -> Result<Got> {
        let mut command = Command::new(harness::binary("bookinfo-services"));
        let output = command.args(["get", url]).output().context("starting `bookinfo-services`")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Ok(Got { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// What all Envoys have logged.
    pub(crate) fn logs(&self) -> Result<Logs> {
        let envoys = self.pods.iter().filter_map(|(name, pod)| Some((name, pod.containers.get(PROXY)?)));
        let logs = envoys.map(|(name, Container { log, .. })| {
            let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
            Ok((name.clone(), log::requests(&text)?))
        });
        logs.collect()
    }

    /// What Envoys and kernel have counted for the pods of the mesh.
    pub(crate) fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        let url = Counters::url();
        for workload in WORKLOADS {
            let got = self.get(&workload.pod(), PROXY, &[&url])?;
            ensure!(got.status() == Some(200), "GET {url} in {}: {}", workload.pod(), got.summary());
            counters.add_envoy(&workload.pod(), got.body())?;
        }
        counters.add_kernel(&self.redirect_json(&["stats"])?)?;
        Ok(counters)
    }

    /// All pods, as the container runtime and `redirect list` have them.
    pub(crate) fn pods(&self) -> Result<Vec<PodRow>> {
        let list = self.redirect_json(&["list"])?;
        self.pods.values().map(|pod| self.row(pod, &list)).collect()
    }

    /// Kills the sidecar of a pod.
    pub(crate) fn kill_sidecar(&mut self, pod: &str) -> Result<()> {
        let sidecar = self.pod_mut(pod)?.containers.remove(PROXY);
        self.node.cri().kill_container(&sidecar.with_context(|| format!("{pod} has no sidecar"))?.id)
    }

    /// Starts the sidecar of a pod again.
    pub(crate) fn start_sidecar(&mut self, pod: &str) -> Result<()> {
        let sidecar = self.container_of(self.pod(pod)?, PROXY, 1)?;
        self.pod_mut(pod)?.containers.insert(PROXY, sidecar);
        self.wait_until_ready(pod)
    }

    /// Makes the sandbox of a pod again; the pod stays the same, with the same uid.
    pub(crate) fn recreate(&mut self, name: &str) -> Result<()> {
        let old = self.pods.remove(name).with_context(|| format!("there is no pod {name}"))?;
        self.node.cri().remove_sandbox(&old.sandbox)?;
        let mut new = self.add(&old.spec, 1)?;
        new.containers = self.containers_of(&new, 1)?;
        self.pods.insert(name.to_owned(), new);
        self.files.publish(&self.ips())?;
        self.wait_until_ready(name)
    }

    /// Removes all pods and ends the container runtime.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let sandboxes: Vec<String> = self.pods.values().map(|pod| pod.sandbox.clone()).collect();
        in_parallel(&sandboxes, |sandbox| self.node.cri().remove_sandbox(sandbox))?;
        self.pods.clear();
        let left = self.redirect_json(&["list"])?;
        ensure!(left.as_array().is_some_and(Vec::is_empty), "after DEL these are still attached: {left:#}");
        self.node.stop()
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    fn pod_mut(&mut self, name: &str) -> Result<&mut Pod> {
        self.pods.get_mut(name).with_context(|| format!("there is no pod {name}"))
    }

    fn container(&self, pod: &str, container: &str) -> Result<&str> {
        let found = self.pod(pod)?.containers.get(container);
        Ok(&found.with_context(|| format!("{pod} has no container {container}"))?.id)
    }

    fn add(&self, spec: &Spec, attempt: u32) -> Result<Pod> {
        let cgroup = format!("/kubepods/burstable/pod{}", spec.uid);
        self.node.make_cgroup(&cgroup)?;
        let config = spec.sandbox(&cgroup, &self.node.logs(), attempt);
        let added = self.node.cri().run_sandbox(config.clone());
        let sandbox =
            added.with_context(|| format!("adding the pod {}: {}", spec.name, self.node.complaints()))?;
        let addresses = self.node.cri().addresses(&sandbox)?;
        let ip = addresses.iter().find_map(|address| address.parse().ok());
        let ip = ip.with_context(|| format!("{} has no IPv4 address among {addresses:?}", spec.name))?;
        Ok(Pod { spec: spec.clone(), sandbox, config, ip, containers: BTreeMap::new() })
    }

    fn containers_of(&self, pod: &Pod, attempt: u32) -> Result<Containers> {
        let names = pod.spec.containers();
        names.iter().map(|name| Ok((*name, self.container_of(pod, name, attempt)?))).collect()
    }

    fn container_of(&self, pod: &Pod, name: &str, attempt: u32) -> Result<Container> {
        let config = pod.spec.container(name, attempt, &self.files, &self.envoy);
        let log = self.node.logs().join(&config.log_path);
        let started = self.node.cri().start_container(&pod.sandbox, config, pod.config.clone());
        let failed = || format!("starting {name} of {}: {}", pod.spec.name, self.node.complaints());
        Ok(Container { id: started.with_context(failed)?, log })
    }

    /// What a readiness probe waits for: the application says that it serves, the sidecar answers on its
    /// health port.
    fn wait_until_ready(&self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready(pod)? {
            if Instant::now() > deadline {
                bail!("{name} was not ready within {PATIENCE:?}: {}", self.last_words(pod));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ready(&self, pod: &Pod) -> Result<bool> {
        let app = pod.containers.get(APP).map(|app| fs::read_to_string(&app.log).unwrap_or_default());
        let serves = app.is_none_or(|log| log.contains("serving at"));
        Ok(serves && self.get_from_node(&pod.spec.probe(pod.ip))?.status() == Some(200))
    }

    /// The end of what a pod's containers have logged.
    fn last_words(&self, pod: &Pod) -> String {
        let tail = |(name, container): (&&str, &Container)| {
            let log = fs::read_to_string(&container.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(5).map(str::to_owned).collect();
            format!("{name}, newest first: {}", lines.join(" / "))
        };
        pod.containers.iter().map(tail).collect::<Vec<_>>().join("; ")
    }

    fn row(&self, pod: &Pod, list: &Value) -> Result<PodRow> {
        let all = self.node.cri().containers(&pod.sandbox)?;
        let specified = pod.spec.containers();
        let (mut containers, init): (Vec<_>, Vec<_>) =
            all.iter().map(|(name, _)| name.clone()).partition(|name| specified.contains(&name.as_str()));
        containers.sort();
        let listed = |entry: &Value| entry["containerId"] == *pod.sandbox;
        Ok(PodRow {
            namespace: pod.spec.namespace.into(),
            name: pod.spec.name.clone(),
            ready: all.iter().filter(|(name, runs)| *runs && containers.contains(name)).count(),
            containers,
            init_containers: init,
            ip: pod.ip.to_string(),
            redirected: list.as_array().into_iter().flatten().any(listed),
        })
    }
}

/// Does the same for all, two at a time, and returns the results in the order of the items.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let half = items.len().div_ceil(2);
    let (first, second) = items.split_at(half);
    thread::scope(|scope| {
        let second = scope.spawn(|| second.iter().map(&work).collect::<Result<Vec<_>>>());
        let mut results = first.iter().map(&work).collect::<Result<Vec<_>>>()?;
        results.extend(second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        Ok(results)
    })
}
