//! The node of these tests: a [`harness::runtime::Node`] with one of two containerds, and what there is to
//! ask about it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use harness::runtime::Setup;
use harness::runtime::cri::Cri;
use serde_json::{Value, json};

use crate::plugin::{self, Call};

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

    /// The root directory of what is not installed.
    fn root(self) -> Result<Option<PathBuf>> {
        if self == Release::Installed {
            return Ok(None);
        }
        let cache = harness::envoy::cache().context("no place for tools: set HOME")?.join("containerd");
        let releases = entries(&cache)?.into_iter().filter(|name| name.starts_with("2."));
        let Some(release) = releases.max() else {
            bail!("there is no containerd 2 in {}: run `cargo xtask setup containerd`", cache.display())
        };
        Ok(Some(cache.join(release)))
    }
}

/// What differs between the nodes of the tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration {
    /// `cniVersion` of the list of plugins.
    pub(crate) version: &'static str,
    /// Where our plugin asks about pods.
    pub(crate) pod_source: &'static str,
}

/// The node, which records the calls of the plugin.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) runtime: harness::runtime::Node,
    dir: PathBuf,
}

impl Node {
    /// Makes the node in `dir`, with `cgroup` as the root of its hierarchy, on the main thread.
    pub(crate) fn start(
        release: Release,
        configuration: Configuration,
        dir: &Path,
        cgroup: &Path,
    ) -> Result<Node> {
        let conf = json!({
            "podSource": configuration.pod_source,
            "agentSocket": dir.join("agent.sock"),
            "agentTimeoutSeconds": 1,
        });
        let plugin = harness::binary("redirect-cni");
        let recorder = format!("plugin '{}' '{}'", plugin.display(), dir.join("calls").display());
        let runtime = harness::runtime::Node::start(&Setup {
            dir,
            cgroup,
            release: release.root()?,
            version: configuration.version,
            conf,
            instead_of_plugin: Some(recorder.into()),
        })?;
        Ok(Node { runtime, dir: dir.to_owned() })
    }

    /// The container runtime.
    pub(crate) fn cri(&self) -> &Cri {
        self.runtime.cri()
    }

    /// The calls of our plugin so far.
    pub(crate) fn calls(&self) -> Result<Vec<Call>> {
        plugin::calls(&self.dir.join("calls"))
    }

    /// What `redirect` finds attached.
    pub(crate) fn attached(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_value(self.runtime.redirect_json(&["list"])?)?)
    }

    /// How often the pods' guards have caught something.
    pub(crate) fn guarded(&self) -> Result<u64> {
        Ok(harness::guarded(&self.dir.join("bpf"))?)
    }

    /// What pods have on the node: addresses leased, interfaces, pins and records. Empty where there is no
    /// pod.
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
        let complaints = self.runtime.complaints();
        let logs = self.tails().unwrap_or_default();
        format!("calls of the plugin:\n{}\n{complaints}\n{logs}", calls.join("\n"))
    }

    /// The last lines of every log.
    fn tails(&self) -> Result<String> {
        let mut text = String::new();
        for name in entries(&self.runtime.logs())? {
            let log = fs::read_to_string(self.runtime.logs().join(&name))?;
            let skip = log.lines().count().saturating_sub(5);
            let tail: Vec<_> = log.lines().skip(skip).collect();
            text.push_str(&format!("{name}:\n  {}\n", tail.join("\n  ")));
        }
        Ok(text)
    }
}

/// The names in a directory; none where it is not there.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
