//! A node with a real container runtime, on the stage of the calling process: cgroups as a kubelet has them,
//! a chain of CNI plugins with redirect-cni as the last, and containerd.
//!
//! Reading order: the [`Node`]; its [`Containerd`], asked for pods and containers through [`cri`]; the one
//! [`image`] that containers are made of; [`runc`], which stands in front of the real one; and what runs in a
//! [`meshed`] pod: a real Envoy, and a [`tool`] as the application.

pub mod containerd;
pub mod cri;
pub mod image;
pub mod meshed;
pub mod runc;
pub mod tool;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use self::containerd::{Containerd, Places};
use self::cri::Cri;
use crate::chain::{STANDARD_DIRS, mesh_conflist};

/// Where the cgroup2 hierarchy of the node is.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// The standard plugins of the chain, and the one that runtimes call for `lo`.
const STANDARD_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// The pods' addresses. The first of each is the node's own.
const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];

/// How a node is to be made.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// An empty directory for mounts and files.
    pub dir: &'a Path,
    /// A cgroup that plays the root of the node's hierarchy.
    pub cgroup: &'a Path,
    /// The root directory of another containerd and its CNI plugins, which take the machine's place on this
    /// node.
    pub release: Option<PathBuf>,
    /// `cniVersion` of the list of plugins.
    pub version: &'a str,
    /// Keys of redirect-cni's entry in that list, besides those that say where things are on the node.
    pub conf: Value,
    /// Arguments with which this program stands in for the plugin; none for the plugin itself.
    pub instead_of_plugin: Option<OsString>,
}

/// The node. It ends when this goes out of scope; mounts, interfaces and programs go with the namespaces.
#[derive(Debug)]
pub struct Node {
    containerd: Containerd,
    dir: PathBuf,
}

impl Node {
    /// Makes the node. To be called on the main thread, before there are others: a cgroup namespace is a
    /// thread's. The calling program must do [`runc::become_runc`] when its first argument is `runc`.
    ///
    /// # Errors
    /// If something that it is made of is missing, or the kernel refuses.
    pub fn start(setup: &Setup<'_>) -> Result<Node> {
        let dir = setup.dir;
        mount_on(dir, "tmpfs")?;
        for sub in ["bpf", "run", "cni", "bin", "containerd", "logs", "leases"] {
            fs::create_dir(dir.join(sub))?;
        }
        mount_on(&dir.join("bpf"), "bpf")?;
        if let Some(root) = &setup.release {
            containerd::put_in_place(root)?;
        }
        // What plugins and runtime write there is theirs and the node's.
        mount_on(Path::new("/run"), "tmpfs")?;
        // Mounted above /var/lib/cni, so that nothing is made on the machine itself.
        mount_on(Path::new("/var/lib"), "tmpfs")?;
        own_cgroups(setup.cgroup).context("making the node's cgroups")?;
        network()?;
        plugins(&dir.join("bin"), setup.instead_of_plugin.as_ref())?;
        fs::write(dir.join("cni/10-mesh.conflist"), conflist(setup).to_string())?;
        stand_in(&dir.join("runc"), &"runc".into())?;
        Ok(Node { containerd: Containerd::start(&Places::of(dir))?, dir: dir.to_owned() })
    }

    /// Ends containerd, pods or not, and starts it again.
    ///
    /// # Errors
    /// If it does not end, or does not come back.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.stop()?;
        self.containerd = Containerd::start(&Places::of(&self.dir))?;
        Ok(())
    }

    /// The container runtime.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        self.containerd.cri()
    }

    /// What the runtime complains about.
    #[must_use]
    pub fn complaints(&self) -> String {
        self.containerd.complaints()
    }

    /// The directory that the node was made in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of containers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Makes a pod's cgroup, as a kubelet does before it asks for a sandbox. `path` is that in the node's
    /// hierarchy.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn make_cgroup(&self, path: &str) -> Result<()> {
        let dir = format!("{CGROUPS}{path}");
        fs::create_dir_all(&dir).with_context(|| format!("making the cgroup {dir}"))
    }

    /// Runs `redirect` on the node and returns what it prints.
    ///
    /// # Errors
    /// If it fails, with what it complained about.
    pub fn redirect(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(crate::binary("redirect"));
        command.arg("--bpffs").arg(self.dir.join("bpf")).arg("--state-dir").arg(self.dir.join("run"));
        let output = command.args(arguments).output().context("starting `redirect`")?;
        ensure!(output.status.success(), "`redirect {}` failed: {}", arguments.join(" "), stderr(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `redirect` on the node and reads the JSON that it prints.
    ///
    /// # Errors
    /// As [`Node::redirect`], and if it prints something else.
    pub fn redirect_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.redirect(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("`redirect {}` prints {text}", arguments.join(" ")))
    }

    /// Ends the container runtime.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.containerd.stop()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.containerd.stop();
    }
}

fn mount_on(path: &Path, kind: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {kind} at {}", path.display()))
}

/// A cgroup namespace whose root is `cgroup`, mounted where runtimes look, with this process in a cgroup of
/// its own: one with processes in it could not have controllers.
fn own_cgroups(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    // Where the machine has its hierarchy in this very place the kernel mounts it no second time (EBUSY).
    mount_on(Path::new(CGROUPS), "tmpfs")?;
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
fn plugins(dir: &Path, instead: Option<&OsString>) -> Result<()> {
    for name in STANDARD_PLUGINS {
        let found = STANDARD_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        let path = found.with_context(|| {
            format!(
                "no CNI plugin `{name}` in {STANDARD_DIRS:?} (Debian package containernetworking-plugins)"
            )
        })?;
        symlink(path, dir.join(name))?;
    }
    let ours = dir.join("redirect-cni");
    match instead {
        Some(arguments) => stand_in(&ours, arguments),
        None => Ok(symlink(crate::binary("redirect-cni"), ours)?),
    }
}

/// Makes a program that is this one with arguments in front, which are written as for a shell.
fn stand_in(path: &Path, arguments: &OsString) -> Result<()> {
    let own = std::env::current_exe()?;
    let text = format!("#!/bin/sh\nexec '{}' {} \"$@\"\n", own.display(), arguments.display());
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn conflist(setup: &Setup<'_>) -> Value {
    let dir = setup.dir;
    let mut redirect = json!({
        "type": "redirect-cni",
        "capabilities": { "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true },
        "bpffsRoot": dir.join("bpf"),
        "stateDir": dir.join("run"),
        "logFile": dir.join("logs/redirect-cni.log"),
    });
    for (key, value) in setup.conf.as_object().into_iter().flatten() {
        redirect[key] = value.clone();
    }
    let mut list = mesh_conflist(&dir.join("leases"), SUBNETS, &redirect);
    list["cniVersion"] = json!(setup.version);
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.insert(1, json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    list
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
