//! Where the runtime looks for network configuration and plugins: what it says itself, what its configuration
//! says, and else what is known of platforms.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::runtime;

/// The two directories, and how they were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Network configuration.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dir: PathBuf,
    /// In words, for the log.
    pub found: String,
}

/// Files in which containerd and CRI-O are told.
const RUNTIME_FILES: &[&str] = &[
    "etc/containerd/config.toml",
    "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "var/snap/microk8s/current/args/containerd.toml",
    "etc/crio/crio.conf",
];

/// Platforms by the directory that only they have: its configuration and its plugins.
const PLATFORMS: &[(&str, &str, &str, &str)] = &[
    ("k3s", "var/lib/rancher/k3s", "var/lib/rancher/k3s/agent/etc/cni/net.d", "var/lib/rancher/k3s/data/cni"),
    (
        "MicroK8s",
        "var/snap/microk8s",
        "var/snap/microk8s/current/args/cni-network",
        "var/snap/microk8s/current/opt/cni/bin",
    ),
    ("OpenShift", "etc/cni/multus/net.d", "etc/cni/multus/net.d", "var/lib/cni/bin"),
    ("GKE", "home/kubernetes/bin", "etc/cni/net.d", "home/kubernetes/bin"),
];

/// Finds them on the node whose root directory is at `root`. The runtime is asked at `socket`, or where one
/// usually is. Must not be called from a task of tokio.
#[must_use]
pub fn find(root: &Path, socket: Option<&Path>) -> Places {
    match runtime::ask(root, socket) {
        Some(said) => Places {
            conf_dir: below(root, &said.conf_dir),
            bin_dir: below(root, &said.bin_dir),
            found: format!("as the runtime at {} says", said.socket.display()),
        },
        None => in_files(root),
    }
}

/// On the node, by its path there.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn in_files(root: &Path) -> Places {
    let mut files: Vec<PathBuf> = RUNTIME_FILES.iter().map(|file| root.join(file)).collect();
    if let Ok(more) = fs::read_dir(root.join("etc/crio/crio.conf.d")) {
        let mut more: Vec<PathBuf> = more.flatten().map(|entry| entry.path()).collect();
        more.sort();
        // The last one counts.
        files.extend(more.into_iter().rev());
    }
    let mut told = (None, None, String::new());
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let (conf, bin) = said(&text);
        if conf.is_some() || bin.is_some() {
            told = (told.0.or(conf), told.1.or(bin), format!("from {}", file.display()));
        }
    }
    let (platform, conf, bin) = platform(root);
    let found = if told.2.is_empty() { format!("as usual on {platform}") } else { told.2 };
    Places {
        conf_dir: below(root, &told.0.unwrap_or_else(|| conf.into())),
        bin_dir: below(root, &told.1.unwrap_or_else(|| bin.into())),
        found,
    }
}

fn platform(root: &Path) -> (&'static str, &'static str, &'static str) {
    let known = PLATFORMS.iter().find(|(_, sign, ..)| root.join(sign).is_dir());
    known.map_or(("Kubernetes", "etc/cni/net.d", "opt/cni/bin"), |(name, _, conf, bin)| (name, conf, bin))
}

/// The two directories that a runtime's TOML names: `conf_dir` and `bin_dir` (or `bin_dirs`) of containerd's
/// CRI plugin, `network_dir` and `plugin_dirs` of CRI-O.
fn said(text: &str) -> (Option<PathBuf>, Option<PathBuf>) {
    let Ok(table) = text.parse::<toml::Table>() else { return (None, None) };
    let Ok(value) = serde_json::to_value(table) else { return (None, None) };
    let cri = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];
    let containerd = cri.iter().map(|name| &value["plugins"][name]["cni"]).find(|cni| cni.is_object());
    let network = &value["crio"]["network"];
    let cni = containerd.unwrap_or(network);
    let path = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| match &cni[key] {
            Value::String(path) => Some(path.as_str()),
            Value::Array(paths) => paths.first().and_then(Value::as_str),
            _ => None,
        });
        found.filter(|path| !path.is_empty()).map(PathBuf::from)
    };
    (path(&["conf_dir", "network_dir"]), path(&["bin_dir", "bin_dirs", "plugin_dirs"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[track_caller]
    fn found(files: &[(&str, &str)], conf: &str, bin: &str) {
        let root = node(files);
        let places = find(root.path(), None);
        assert_eq!((places.conf_dir, places.bin_dir), (root.path().join(conf), root.path().join(bin)));
    }

    #[test]
    fn runtimes_are_believed() {
        let v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n bin_dir = \"/x/bin\"\n conf_dir = \"/x/net.d\"";
        found(&[("etc/containerd/config.toml", v2)], "x/net.d", "x/bin");
        let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n bin_dirs = ['/y/bin', '/z']\n conf_dir = '/y/net.d'";
        found(&[("etc/containerd/config.toml", v3)], "y/net.d", "y/bin");
        let crio = "[crio.network]\nnetwork_dir = \"/c/net.d/\"\nplugin_dirs = [\"/c/bin\"]";
        found(
            &[("etc/crio/crio.conf", "[crio]\n"), ("etc/crio/crio.conf.d/10-x.conf", crio)],
            "c/net.d",
            "c/bin",
        );
    }

    #[test]
    fn else_the_platform_is_known_by_what_only_it_has() {
        found(&[], "etc/cni/net.d", "opt/cni/bin");
        found(&[("etc/containerd/config.toml", "version = 2")], "etc/cni/net.d", "opt/cni/bin");
        found(&[("etc/containerd/config.toml", "not = [toml")], "etc/cni/net.d", "opt/cni/bin");
        found(&[("home/kubernetes/bin/x", "")], "etc/cni/net.d", "home/kubernetes/bin");
        found(
            &[("var/lib/rancher/k3s/x", "")],
            "var/lib/rancher/k3s/agent/etc/cni/net.d",
            "var/lib/rancher/k3s/data/cni",
        );
        found(&[("etc/cni/multus/net.d/x", "")], "etc/cni/multus/net.d", "var/lib/cni/bin");
    }
}
