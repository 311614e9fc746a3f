//! Can this node run it? Every requirement is tried, never derived from a version number.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::Serialize;

use crate::inspect;
use crate::kernel::install::{self, Installed};
use crate::kernel::pins;
use crate::kernel::stamp::Stamp;
use crate::kernel::sys;
use crate::node::{Node, is_bpffs};
use crate::pod::cgroup;

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What is needed.
    pub requirement: &'static str,
    /// Whether it is there.
    pub found: bool,
    /// What was seen.
    pub detail: String,
    /// What to do when it is missing.
    pub remedy: &'static str,
}

/// Examines the node and changes nothing but the state directory, which it makes.
#[must_use]
pub fn examine(node: &Node) -> Vec<Finding> {
    vec![privileges(), bpffs(node), cgroup2(), netns_cookie(), programs(node), state_dir(node)]
}

fn privileges() -> Finding {
    let found = sys::may_use_bpf();
    Finding {
        requirement: "privileges",
        found,
        detail: if found { "a program can be loaded" } else { "the kernel refuses to load a program" }.into(),
        remedy: "run as root, or with CAP_BPF and CAP_NET_ADMIN; the kernel needs CONFIG_BPF_SYSCALL and Linux 5.9",
    }
}

fn bpffs(node: &Node) -> Finding {
    let found = is_bpffs(&node.bpffs).unwrap_or(false);
    Finding {
        requirement: "bpf file system",
        found,
        detail: node.bpffs.display().to_string(),
        remedy: "mount -t bpf bpf /sys/fs/bpf (systemd does it at boot)",
    }
}

/// The root is found as the plugin finds it.
fn cgroup2() -> Finding {
    let root = cgroup::root(None);
    Finding {
        requirement: "cgroup v2",
        found: root.is_ok(),
        detail: root.map_or_else(|error| error.to_string(), |path| path.display().to_string()),
        remedy: "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified",
    }
}

fn netns_cookie() -> Finding {
    let cookie = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .ok()
        .and_then(|socket| sys::netns_cookie(&socket).ok());
    Finding {
        requirement: "network namespace cookie",
        found: cookie.is_some(),
        detail: cookie
            .map_or("SO_NETNS_COOKIE is not known".into(), |cookie| format!("this one is {cookie}")),
        remedy: "Linux 5.15 or newer is needed",
    }
}

/// The verifier is asked about every program; the answer names the helper or field that an old kernel lacks.
fn programs(node: &Node) -> Finding {
    let remedy = match install::state(node) {
        Installed::Partly { .. } => {
            "run `redirect install`: it makes the installation whole and repairs the pods"
        }
        _ => "Linux 5.18 or newer is needed, with CONFIG_CGROUP_BPF, CONFIG_NET and CONFIG_BPF_JIT",
    };
    let tried = match install::state(node) {
        Installed::Not => install::try_load(),
        Installed::Partly { missing } => Err(format!("{} is missing", missing.display())),
        Installed::Wholly => Ok(stamp(node)),
    };
    Finding {
        requirement: "kernel programs",
        found: tried.is_ok(),
        detail: tried.unwrap_or_else(|error| error),
        remedy,
    }
}

fn stamp(node: &Node) -> String {
    match Stamp::read(&pins::current(node)) {
        Some(stamp) if stamp.is_own() => format!("installed ({stamp})"),
        Some(stamp) => format!("installed, of another build ({stamp}): `redirect upgrade` replaces them"),
        None => "installed".into(),
    }
}

fn state_dir(node: &Node) -> Finding {
    let tried = inspect::state_is_writable(node);
    Finding {
        requirement: "state directory",
        found: tried.is_ok(),
        detail: tried.map_or_else(|error| error.to_string(), |()| node.state_dir.display().to_string()),
        remedy: "make it writable, or name another with --state-dir",
    }
}
