//! The node's network configuration and plugins: an agent keeps them, and a runtime calls what it finds.

use std::fs;
use std::path::{Path, PathBuf};

use harness::Pod;
use harness::chain::{Chain, Sandbox};
use serde_json::{Value, json};

use super::uid;
use crate::driver::until;

/// What the injector writes. Without the names of its containers the plugin has to ask an agent.
const INJECTED: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;

/// The two directories.
pub(crate) struct Place {
    /// The one that they are in.
    pub(crate) dir: PathBuf,
}

impl Place {
    /// A node with a network, and without us.
    pub(crate) fn new(dir: &Path) -> Place {
        let place = Place { dir: dir.to_owned() };
        for dir in [place.conf(), place.bin()] {
            fs::create_dir(dir).expect("a directory");
        }
        let list = json!({ "cniVersion": "1.0.0", "name": "mesh", "plugins": [{ "type": "loopback" }] });
        fs::write(place.file(), list.to_string()).expect("a list");
        place
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.conf().join("10-mesh.conflist")
    }

    /// Where they are, for `redirect`.
    pub(crate) fn dirs(&self) -> [String; 4] {
        let text = |path: PathBuf| path.display().to_string();
        ["--cni-conf-dir".into(), text(self.conf()), "--cni-bin-dir".into(), text(self.bin())]
    }

    /// The arguments of an agent that installs here, with these keys in the entry.
    pub(crate) fn arguments(&self, keys: &Value, more: &[&str]) -> Vec<String> {
        let own = ["--install".into(), "--plugin-conf".into(), keys.to_string()];
        self.dirs().into_iter().chain(own).chain(more.iter().map(|one| (*one).to_owned())).collect()
    }

    /// Whether the list has the entry.
    pub(crate) fn has_entry(&self) -> bool {
        fs::read_to_string(self.file()).is_ok_and(|list| list.contains("redirect-cni"))
    }

    /// Waits for the entry: the chain that a runtime finds.
    pub(crate) fn chain(&self) -> Chain {
        until("the entry is there", || self.has_entry());
        let list: Value = serde_json::from_slice(&fs::read(self.file()).expect("the list")).expect("JSON");
        Chain::new(list, &[&self.bin()]).expect("a chain")
    }
}

/// The sandbox of a pod with a sidecar, as a runtime knows it.
pub(crate) fn sandbox(pod: &Pod) -> Sandbox {
    let mount = harness::cgroup::Cgroup::mount_point();
    let below = pod.cgroup().strip_prefix(mount).expect("a cgroup below the mount");
    Sandbox {
        id: pod.name().to_owned(),
        netns: Some(pod.netns().path().to_owned()),
        ifname: "eth0".into(),
        pod_namespace: "shop".into(),
        pod_name: pod.name().to_owned(),
        pod_uid: uid(pod),
        annotations: [("sidecar.istio.io/status".to_owned(), INJECTED.to_owned())].into(),
        cgroup_path: Some(format!("/{}", below.display())),
    }
}
