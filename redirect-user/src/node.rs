//! Where things are on this node.

pub mod fault;
pub mod lock;
pub mod names;
pub mod outcomes;
pub mod private;
pub mod timings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};

use crate::ids::AttachmentId;

/// What this process makes from now on, others of the machine cannot write to. A runtime may start its
/// plugins with any umask, and who could write to the folders of pins and records could open every pod.
pub fn keep_others_from_writing() {
    let before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(before | Mode::S_IWGRP | Mode::S_IWOTH);
}

/// The two places that hold state: a bpf file system for pins, and a folder for the attachments' records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// Records, outcomes.
    pub state_dir: PathBuf,
    /// How long to wait for the node's lock.
    pub lock_timeout: Duration,
}

impl Node {
    /// Where the kernel's documentation and every distribution mount bpffs.
    pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
    /// Emptied at boot, as bpffs is.
    pub const DEFAULT_STATE_DIR: &str = "/run/redirect-cni";

    /// Below the two minutes after which a kubelet gives up a sandbox.
    pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

    /// A node with these places.
    #[must_use]
    pub fn new(bpffs: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Node {
        let lock_timeout = Node::DEFAULT_LOCK_TIMEOUT;
        Node { bpffs: bpffs.into(), state_dir: state_dir.into(), lock_timeout }
    }

    /// Where records go that cannot be read.
    pub(crate) fn set_aside(&self) -> PathBuf {
        self.state_dir.join("unreadable")
    }

    pub(crate) fn attachments(&self) -> PathBuf {
        self.state_dir.join("attachments")
    }

    pub(crate) fn attachment(&self, id: &AttachmentId) -> PathBuf {
        let (container, ifname) = (names::encode(&id.container_id), names::encode(&id.ifname));
        self.attachments().join(format!("{container}.{ifname}.json"))
    }
}

impl Default for Node {
    fn default() -> Node {
        Node::new(Node::DEFAULT_BPFFS, Node::DEFAULT_STATE_DIR)
    }
}

/// Whether a path is on a bpf file system.
pub(crate) fn is_bpffs(path: &Path) -> std::io::Result<bool> {
    Ok(nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}
