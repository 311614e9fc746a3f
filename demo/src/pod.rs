//! A pod of the demo, made as kubelet and container runtime make one: the pod's cgroup, its network
//! namespace, the CNI chain, and then its two containers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::cgroup::Cgroup;
use harness::chain::{Chain, Sandbox};
use harness::envoy::{Bootstrap, Envoy, INBOUND_PORT, OUTBOUND_PORT, OriginalSrc};
use harness::netns::NetNs;
use harness::unprivileged::unprivileged;
use harness::{Family, Process, Service, User};
use serde_json::{Value, json};

use crate::app::Outcome;

/// The port that the applications serve on.
pub(crate) const APP_PORT: u16 = 8080;

/// The two values of `interceptionMode`.
pub(crate) const REDIRECT: &str = "REDIRECT";
pub(crate) const TPROXY: &str = "TPROXY";

/// How long a sidecar may take to log a request that has been answered: it takes it some 20 ms.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// A pod without its containers: what there is between ADD and DEL.
pub(crate) struct Pod {
    /// `client pod` or `server pod`.
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) sandbox: Sandbox,
    /// What ADD answered.
    pub(crate) result: Value,
    /// Its `interceptionMode`.
    pub(crate) mode: &'static str,
    cgroup: PathBuf,
    files: PathBuf,
}

impl Pod {
    /// Makes the pod `short` and adds it to the network. `root` plays the root of the node's cgroup
    /// hierarchy.
    pub(crate) fn add(
        (short, mode): (&str, &'static str),
        number: u8,
        dir: &Path,
        root: &Path,
        chain: &Chain,
    ) -> Result<Pod> {
        let uid = format!("7d4ac5e2-0000-4000-8000-{number:012}");
        let cgroup = root.join(format!("kubepods/burstable/pod{uid}"));
        fs::create_dir_all(&cgroup)
            .with_context(|| format!("making the pod's cgroup {}", cgroup.display()))?;
        let netns = NetNs::create(dir.join("netns").join(short));
        let sandbox = Sandbox {
            // Runtimes take 64 hexadecimal digits.
            id: format!("{number:02x}").repeat(32),
            netns: Some(netns.path().to_owned()),
            ifname: "eth0".into(),
            pod_namespace: "demo".into(),
            pod_name: short.into(),
            pod_uid: uid,
            annotations: injected_annotations(mode),
            cgroup_path: Some(runtime_path(&cgroup)?),
        };
        let result = chain.add(&sandbox)?;
        Ok(Pod { name: format!("{short} pod"), netns, sandbox, result, mode, cgroup, files: dir.to_owned() })
    }

    /// Its address in the family that `family` says, as the chain has given it out.
    pub(crate) fn ip(&self, family: Family) -> Result<IpAddr> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        let addresses =
            ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok());
        let mut addresses = addresses.filter(|ip| Family::of(ip) == family);
        addresses.next().with_context(|| {
            format!("ADD gave the {} no {} address: {}", self.name, family.name(), self.result)
        })
    }

    /// Where its application serves.
    pub(crate) fn serves_at(&self, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.ip(family)?, APP_PORT))
    }

    /// The names of its containers: the cgroups below the pod's.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.cgroup)?.collect::<Result<Vec<_>, _>>()?;
        let dirs = entries.into_iter().filter(|entry| entry.path().is_dir());
        let mut names: Vec<_> = dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// The ids of all processes in it.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for container in self.containers()? {
            let text = fs::read_to_string(self.cgroup.join(container).join("cgroup.procs"))?;
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        Ok(pids)
    }

    fn container(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(path)
    }
}

/// What the sidecar injector of Istio writes into a pod when its CNI plugin is in use.
fn injected_annotations(mode: &str) -> BTreeMap<String, String> {
    let status = json!({
        "initContainers": null,
        "containers": ["istio-proxy"],
        "volumes": ["workload-socket", "istio-envoy", "istio-data"],
        "imagePullSecrets": null,
        "revision": "default",
    });
    [
        ("istio.io/rev", "default"),
        ("kubectl.kubernetes.io/default-container", "app"),
        ("sidecar.istio.io/interceptionMode", mode),
        ("sidecar.istio.io/status", &status.to_string()),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "15020"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The cgroup as a runtime names it: from the cgroup2 mount on.
fn runtime_path(cgroup: &Path) -> Result<String> {
    let path = cgroup
        .strip_prefix(Cgroup::mount_point())
        .context("the demo's cgroup is not in the cgroup2 mount")?;
    Ok(format!("/{}", path.display()))
}

/// The application of a pod, as uid 1000.
pub(crate) struct App {
    child: Child,
    orders: ChildStdin,
    outcomes: BufReader<ChildStdout>,
}

impl App {
    /// Starts it and waits until it serves.
    pub(crate) fn start(pod: &Pod) -> Result<App> {
        let mut command = unprivileged(&std::env::current_exe()?, User::APP)?;
        command.args(["app", &pod.sandbox.pod_name, &APP_PORT.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        pod.netns.enter(&mut command, Some(&pod.container("app")?));
        let mut child = command.spawn().context("starting the application")?;
        let orders = child.stdin.take().context("no pipe to the application")?;
        let mut outcomes = BufReader::new(child.stdout.take().context("no pipe from the application")?);
        let mut line = String::new();
        outcomes.read_line(&mut line)?;
        ensure!(line == "listening\n", "the application in the {} did not start", pod.name);
        Ok(App { child, orders, outcomes })
    }

    /// Has the application make a request.
    pub(crate) fn get(&mut self, dst: SocketAddr) -> Result<Outcome> {
        writeln!(self.orders, "{dst}").context("the application has ended")?;
        let mut line = String::new();
        self.outcomes.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the application answered `{}`", line.trim()))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sidecar of a pod, as uid 1337.
pub(crate) enum Sidecar {
    Envoy(Envoy),
    /// Where there is no Envoy.
    BuiltIn(Process),
}

/// A connection as a sidecar saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captured {
    /// Where it was going.
    pub(crate) original_dst: SocketAddr,
    /// Who opened it.
    pub(crate) client: SocketAddr,
}

impl Sidecar {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(pod: &Pod) -> Result<Sidecar> {
        let cgroup = pod.container("istio-proxy")?;
        if Envoy::find().is_some() {
            let name = format!("{}-envoy", pod.sandbox.pod_name);
            let original_src = (pod.mode == TPROXY).then_some(OriginalSrc::Address);
            let bootstrap = Bootstrap { original_src, ..Bootstrap::default() };
            return Envoy::start(&name, &pod.netns, &cgroup, &bootstrap, &pod.files).map(Sidecar::Envoy);
        }
        let process = Process::start(&pod.name, &pod.netns, &cgroup, User::PROXY);
        let addresses: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let ports = [OUTBOUND_PORT, INBOUND_PORT];
        let listen: Vec<_> =
            addresses.iter().flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port))).collect();
        let listening = match pod.mode {
            TPROXY => process.serve_transparent(&listen, Service::Imitate, false),
            _ => process.serve(&listen, Service::Forward),
        };
        listening.context("the built-in proxy cannot listen")?;
        Ok(Sidecar::BuiltIn(process))
    }

    /// What kind it is, for a title.
    pub(crate) fn describe() -> String {
        match Envoy::find().as_deref().and_then(Envoy::version) {
            Some(version) => format!("Envoy {version}"),
            None => "a small built-in proxy, because there is no Envoy (`cargo xtask setup mesh` fetches it)"
                .into(),
        }
    }

    /// The one connection that came since this was asked last.
    pub(crate) fn captured(&mut self) -> Result<Captured> {
        let mut all: Vec<_> = match self {
            Sidecar::Envoy(envoy) => {
                let entries = envoy.entries_within(LOG_PATIENCE, 1)?.into_iter();
                entries.map(|one| Captured { original_dst: one.original_dst, client: one.client }).collect()
            }
            Sidecar::BuiltIn(process) => seen(process)?,
        };
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Ok(one),
            (None, _) => bail!("nothing"),
            (Some(last), false) => bail!("more than one connection: {all:?} and {last:?}"),
        }
    }

    /// Ends it; its listeners are closed when this returns.
    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Sidecar::Envoy(envoy) => envoy.stop(),
            Sidecar::BuiltIn(process) => {
                drop(process);
                Ok(())
            }
        }
    }
}

fn seen(process: &Process) -> Result<Vec<Captured>> {
    let deadline = Instant::now() + LOG_PATIENCE;
    loop {
        let seen = process.take_seen();
        if !seen.is_empty() || Instant::now() > deadline {
            let captured = seen.into_iter().map(|one| match one.original_dst {
                Ok(original_dst) => Ok(Captured { original_dst, client: one.client }),
                Err(errno) => bail!("SO_ORIGINAL_DST of a connection from {} failed: {errno}", one.client),
            });
            return captured.collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A pod with its containers.
pub(crate) struct Running {
    pub(crate) pod: Pod,
    pub(crate) app: App,
    pub(crate) sidecar: Option<Sidecar>,
}
