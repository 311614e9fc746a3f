//! A node with a real container runtime, on the stage of the calling process: cgroups as a kubelet has them, a chain of
//! CNI plugins with redirect-cni as the last, and containerd.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use harness::chain::mesh_conflist;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::containerd::{Containerd, Places};
use crate::cri::Cri;
use crate::plugin::{self, Call};

/// Where the cgroup2 hierarchy of the node is.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// The standard plugins of the chain, and the one that runtimes call for `lo`.
const STANDARD_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// Where Debian puts them.
const STANDARD_DIR: &str = "/usr/lib/cni";
/// The programs of a containerd.
const PROGRAMS: [&str; 3] = ["containerd", "ctr", "containerd-shim-runc-v2"];
/// The pods' addresses.
const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The machine's, of Debian 12: 1.6.
    Installed,
    /// That of a later suite, from the cache: 2.1.
    Later,
}

impl Release {
    /// Its name in the names of tests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Release::Installed => "installed",
            Release::Later => "later",
        }
    }

    pub(crate) fn parse(name: &OsStr) -> Result<Release> {
        let all = [Release::Installed, Release::Later];
        all.into_iter().find(|release| *release.name() == *name).context("no such release")
    }
}

/// What differs between the nodes of the tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration {
    /// `cniVersion` of the list of plugins.
    pub(crate) version: &'static str,
    /// Whom our plugin asks about pods.
    pub(crate) pod_source: &'static str,
}

/// The node. It ends when this goes out of scope; mounts, interfaces and programs go with the namespaces.
#[derive(Debug)]
pub(crate) struct Node {
    // In an option so that it can be started again; there is one but in between.
    containerd: Option<Containerd>,
    dir: PathBuf,
}

impl Node {
    /// Makes the node in `dir`, with `cgroup` as the root of its hierarchy. To be called on the main thread, before
    /// there are others: a cgroup namespace is a thread's.
    pub(crate) fn start(
        release: Release,
        configuration: Configuration,
        dir: &Path,
        cgroup: &Path,
    ) -> Result<Node> {
        mount_on(dir, "tmpfs")?;
        for sub in ["bpf", "run", "cni", "bin", "containerd", "logs", "leases"] {
            fs::create_dir(dir.join(sub))?;
        }
        mount_on(&dir.join("bpf"), "bpf")?;
        if release == Release::Later {
            later_programs()?;
        }
        // What plugins and runtimes write there is theirs and the node's.
        mount_on(Path::new("/run"), "tmpfs")?;
        mount_on(Path::new("/var/lib"), "tmpfs")?;
        own_cgroups(cgroup).context("making the node's cgroups")?;
        network()?;
        plugins(dir)?;
        fs::write(dir.join("cni/10-test.conflist"), conflist(dir, configuration).to_string())?;
        script(&dir.join("runc"), "runc")?;
        let mut node = Node { containerd: None, dir: dir.to_owned() };
        node.start_containerd()?;
        Ok(node)
    }

    /// Ends containerd, pods or not, and starts it again.
    pub(crate) fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.take().context("containerd is not running")?.stop()?;
        self.start_containerd()
    }

    fn start_containerd(&mut self) -> Result<()> {
        let dir = &self.dir;
        let places = Places {
            dir: &dir.join("containerd"),
            conf_dir: &dir.join("cni"),
            bin_dir: &dir.join("bin"),
            runc: &dir.join("runc"),
        };
        self.containerd = Some(Containerd::start(&places)?);
        Ok(())
    }

    /// The container runtime.
    pub(crate) fn cri(&self) -> Result<&Cri> {
        Ok(self.containerd.as_ref().context("containerd is not running")?.cri())
    }

    /// The directory of containers' logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The calls of our plugin so far.
    pub(crate) fn calls(&self) -> Result<Vec<Call>> {
        plugin::calls(&self.dir.join("calls"))
    }

    /// What `redirect` finds attached.
    pub(crate) fn attached(&self) -> Result<Vec<Value>> {
        let mut command = Command::new(harness::binary("redirect"));
        command.arg("--bpffs").arg(self.dir.join("bpf")).arg("--state-dir").arg(self.dir.join("run"));
        let output = command.args(["list", "--output", "json"]).output().context("starting `redirect`")?;
        ensure!(
            output.status.success(),
            "`redirect list` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// What pods have on the node: addresses leased, interfaces, pins and records. Empty where there is no pod.
    pub(crate) fn of_pods(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let leases = entries(&self.dir.join("leases/mesh"))?.into_iter();
        // Besides leases there are a lock and the last address of each range.
        found.extend(leases.filter(|name| name.starts_with("10.") || name.starts_with("fd")));
        let interfaces = entries(Path::new("/sys/class/net"))?.into_iter();
        found.extend(interfaces.filter(|name| name.starts_with("veth")));
        for version in entries(&self.dir.join("bpf/redirect-cni"))? {
            let pods = self.dir.join("bpf/redirect-cni").join(version).join("pods");
            found.extend(entries(&pods)?.into_iter().map(|name| format!("pins of {name}")));
        }
        found.extend(self.attached()?.iter().map(|one| format!("attachment {one}")));
        Ok(found)
    }

    /// What to look at when a test has failed.
    pub(crate) fn how_it_went(&self) -> String {
        let calls = self.calls().unwrap_or_default();
        let calls: Vec<_> = calls.iter().map(|call| format!("{call:?}")).collect();
        let complaints = self.containerd.as_ref().map(Containerd::complaints).unwrap_or_default();
        let logs = self.tails().unwrap_or_default();
        format!("calls of the plugin:\n{}\n{complaints}\n{logs}", calls.join("\n"))
    }

    /// The last lines of every log.
    fn tails(&self) -> Result<String> {
        let mut text = String::new();
        for name in entries(&self.logs())? {
            let log = fs::read_to_string(self.logs().join(&name))?;
            let skip = log.lines().count().saturating_sub(5);
            let tail: Vec<_> = log.lines().skip(skip).collect();
            text.push_str(&format!("{name}:\n  {}\n", tail.join("\n  ")));
        }
        Ok(text)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut containerd) = self.containerd.take() {
            let _ = containerd.stop();
        }
    }
}

fn mount_on(path: &Path, kind: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {kind} at {}", path.display()))
}

/// Puts the programs of the cache in place of the machine's, for this node only. Its CNI plugins come along: those of
/// Debian 12 do not speak version 1.1.0.
fn later_programs() -> Result<()> {
    let cache = harness::envoy::cache().context("no place for tools: set HOME")?.join("containerd");
    let releases = entries(&cache)?.into_iter().filter(|name| name.starts_with("2."));
    let Some(release) = releases.max() else {
        bail!("there is no containerd 2 in {}: run `cargo xtask setup containerd`", cache.display())
    };
    let root = cache.join(release);
    for program in PROGRAMS.map(|program| format!("usr/bin/{program}")) {
        bind(&root.join(&program), &Path::new("/").join(&program))?;
    }
    bind(&root.join("usr/lib/cni"), Path::new(STANDARD_DIR))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}

/// The names in a directory; none where it is not there.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
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
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("starting `ip`")?;
    ensure!(status.success(), "`ip link set lo up` failed");
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, "1").with_context(|| format!("writing 1 to {}", path.display()))?;
    }
    Ok(())
}

/// One directory with all plugins, as runtimes want it; ours behind the recorder.
fn plugins(dir: &Path) -> Result<()> {
    for name in STANDARD_PLUGINS {
        let path = Path::new(STANDARD_DIR).join(name);
        ensure!(path.is_file(), "{} is missing (Debian package containernetworking-plugins)", path.display());
        symlink(path, dir.join("bin").join(name))?;
    }
    let real = harness::binary("redirect-cni");
    let arguments = format!("plugin '{}' '{}'", real.display(), dir.join("calls").display());
    script(&dir.join("bin/redirect-cni"), &arguments)
}

/// A program that is this one with arguments in front.
fn script(path: &Path, arguments: &str) -> Result<()> {
    let own = std::env::current_exe()?;
    fs::write(path, format!("#!/bin/sh\nexec '{}' {arguments} \"$@\"\n", own.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn conflist(dir: &Path, configuration: Configuration) -> Value {
    let redirect = json!({
        "type": "redirect-cni",
        "capabilities": { "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true },
        "podSource": configuration.pod_source,
        "agentSocket": dir.join("agent.sock"),
        "agentTimeoutSeconds": 1,
        "bpffsRoot": dir.join("bpf"),
        "stateDir": dir.join("run"),
        "logFile": dir.join("logs/redirect-cni.log"),
    });
    let mut list = mesh_conflist(&dir.join("leases"), SUBNETS, &redirect);
    list["cniVersion"] = json!(configuration.version);
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.insert(1, json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    list
}
