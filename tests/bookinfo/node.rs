//! A node with a real container runtime, in the namespaces of the calling process: cgroups as a kubelet has them, a
//! chain of CNI plugins with redirect-cni as the last, and containerd.

mod containerd;
pub(crate) mod cri;
mod image;
pub(crate) mod runc;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use harness::chain::mesh_conflist;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use self::containerd::{Containerd, Places};
use self::cri::Cri;
pub(crate) use self::image::IMAGE;
use crate::plan::EXCLUDED_NAMESPACES;

/// Where the cgroup2 hierarchy of the node is.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The standard plugins of the chain, and the one that runtimes call for `lo`.
const STANDARD_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// Where distributions put them.
const STANDARD_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// The pods' addresses.
const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];
/// The node's own address among them: the first.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The port of the node that leads to the gateway.
pub(crate) const GATEWAY_HOST_PORT: u16 = 80;

/// The node. It ends when this goes out of scope; mounts, interfaces and programs go with the namespaces.
#[derive(Debug)]
pub(crate) struct Node {
    containerd: Containerd,
    dir: PathBuf,
}

impl Node {
    /// Makes the node in `dir`, with `cgroup` as the root of its hierarchy. To be called on the main thread, before
    /// there are others: a cgroup namespace is a thread's.
    pub(crate) fn start(dir: &Path, cgroup: &Path) -> Result<Node> {
        mount_on(dir, "tmpfs")?;
        for sub in ["bpf", "run", "cni", "bin", "containerd", "logs"] {
            fs::create_dir(dir.join(sub))?;
        }
        mount_on(&dir.join("bpf"), "bpf")?;
        // What plugins and runtime write there is theirs and the node's.
        mount_on(Path::new("/run"), "tmpfs")?;
        // host-local keeps its leases in /var/lib/cni; mounted above it, so that nothing is made on the machine itself.
        mount_on(Path::new("/var/lib"), "tmpfs")?;
        own_cgroups(cgroup).context("making the node's cgroups")?;
        network()?;
        plugins(&dir.join("bin"))?;
        let list = conflist(dir);
        fs::write(dir.join("cni/10-bookinfo.conflist"), list.to_string())?;
        let runc = wrapper(dir)?;
        let places = Places {
            dir: &dir.join("containerd"),
            conf_dir: &dir.join("cni"),
            bin_dir: &dir.join("bin"),
            runc: &runc,
        };
        Ok(Node { containerd: Containerd::start(&places)?, dir: dir.to_owned() })
    }

    /// The container runtime.
    pub(crate) fn cri(&self) -> &Cri {
        self.containerd.cri()
    }

    /// What the runtime complains about.
    pub(crate) fn complaints(&self) -> String {
        self.containerd.complaints()
    }

    /// A directory for files of the demonstration.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of containers' logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The node's network namespace.
    pub(crate) fn netns(&self) -> Result<File> {
        File::open("/proc/self/ns/net").context("opening the node's network namespace")
    }

    /// Makes a pod's cgroup, as a kubelet does before it asks for a sandbox, and returns its path in the hierarchy.
    pub(crate) fn pod_cgroup(&self, uid: &str) -> Result<String> {
        let path = format!("/kubepods/burstable/pod{uid}");
        let dir = format!("{CGROUPS}{path}");
        fs::create_dir_all(&dir).with_context(|| format!("making the cgroup {dir}"))?;
        Ok(path)
    }

    /// Runs `redirect` on the node and returns what it prints.
    pub(crate) fn redirect(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(harness::binary("redirect"));
        command.arg("--bpffs").arg(self.dir.join("bpf")).arg("--state-dir").arg(self.dir.join("run"));
        let output = command.args(arguments).output().context("starting `redirect`")?;
        ensure!(output.status.success(), "`redirect {}` failed: {}", arguments.join(" "), stderr(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends the container runtime.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.containerd.stop()
    }
}

fn mount_on(path: &Path, kind: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {kind} at {}", path.display()))
}

/// A cgroup namespace whose root is `cgroup`, mounted where runtimes look, with this process in a cgroup of its own:
/// one with processes in it could not have controllers.
fn own_cgroups(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    mount_on(Path::new(CGROUPS), "cgroup2")?;
    let own = Path::new(CGROUPS).join("node");
    fs::create_dir(&own)?;
    Ok(fs::write(own.join("cgroup.procs"), "0")?)
}

/// A node forwards between its pods.
fn network() -> Result<()> {
    let output = Command::new("ip").args(["link", "set", "lo", "up"]).output().context("starting `ip`")?;
    ensure!(output.status.success(), "`ip link set lo up` failed: {}", stderr(&output));
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, "1").with_context(|| format!("writing 1 to {}", path.display()))?;
    }
    Ok(())
}

/// One directory with all plugins, as runtimes want it.
fn plugins(dir: &Path) -> Result<()> {
    for name in STANDARD_PLUGINS {
        let found = STANDARD_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        let path = found.with_context(|| {
            format!(
                "no CNI plugin `{name}` in {STANDARD_DIRS:?} (Debian package containernetworking-plugins)"
            )
        })?;
        symlink(path, dir.join(name))?;
    }
    Ok(symlink(harness::binary("redirect-cni"), dir.join("redirect-cni"))?)
}

fn conflist(dir: &Path) -> Value {
    let redirect = json!({
        "type": "redirect-cni",
        "capabilities": { "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true },
        "podSource": "annotations",
        "excludeNamespaces": EXCLUDED_NAMESPACES,
        "bpffsRoot": dir.join("bpf"),
        "stateDir": dir.join("run"),
        "logFile": dir.join("logs/redirect-cni.log"),
    });
    let mut list = mesh_conflist(&dir.join("leases"), SUBNETS, &redirect);
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.insert(1, json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    list
}

/// The program that the runtime takes for runc.
fn wrapper(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("runc");
    let own = std::env::current_exe()?;
    fs::write(&path, format!("#!/bin/sh\nexec '{}' runc \"$@\"\n", own.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
