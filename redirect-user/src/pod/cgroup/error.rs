//! Why a pod's cgroup cannot be used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::kernel::hook::Hook;
use crate::kernel::sys::SyscallError;
use crate::path_error::PathError;

/// Why a pod's cgroup cannot be used.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// mountinfo cannot be read.
    #[error("cannot read {}: {source}; is /proc mounted?", path.display())]
    Mountinfo { path: PathBuf, source: io::Error },
    /// Only cgroup v1 is mounted.
    #[error(
        "this node has cgroup v1 only, and programs attach to cgroup v2: boot with \
         systemd.unified_cgroup_hierarchy=1, or mount cgroup2 and set \"cgroupRoot\""
    )]
    V1Only,
    /// No cgroup file system is mounted.
    #[error("no cgroup file system is mounted here: mount cgroup2, or set \"cgroupRoot\" to where it is")]
    NotMounted,
    /// The configured root is not cgroup v2.
    #[error("\"cgroupRoot\" {} is not a cgroup v2 file system", path.display())]
    Root {
        /// The root.
        path: PathBuf,
    },
    /// Neither path nor uid is known.
    #[error(
        "the runtime gave neither the pod's cgroup path (\"capabilities\": {{\"cgroupPath\": true}}, containerd since \
         1.7) nor its uid (K8S_POD_UID in CNI_ARGS), and the pod source knows no uid"
    )]
    NoClue,
    /// The runtime's path cannot be a pod's.
    #[error("the runtime's cgroup path {path:?} {why}")]
    BadPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The path is of the other cgroup driver's shape.
    #[error(
        "the runtime's cgroup path {path:?} does not exist, and the node's pods are in {}: kubelet and runtime use \
         different cgroup drivers (SystemdCgroup in the runtime's configuration, cgroupDriver in the kubelet's)",
        other.display()
    )]
    OtherDriver { path: String, other: PathBuf },
    /// The uid cannot be a part of a path.
    #[error("the pod's uid {uid:?} is not one: letters, digits and dashes are allowed")]
    BadUid {
        /// The uid.
        uid: String,
    },
    /// The runtime's path does not exist and could not be made.
    #[error("cannot make the pod's cgroup {}: {source}", path.display())]
    Make {
        /// The cgroup.
        path: PathBuf,
        source: io::Error,
    },
    /// No cgroup has the pod's uid in its name.
    #[error(
        "no cgroup of the pod with uid {uid} below {}: looked in {looked} directories for {}; does the kubelet run \
         with --cgroups-per-qos=false, or is cgroup v2 elsewhere (\"cgroupRoot\")?", root.display(), names.join(" and ")
    )]
    NotFound {
        /// The uid.
        uid: String,
        /// Where the search began.
        root: PathBuf,
        /// The names that were looked for.
        names: Vec<String>,
        /// How many directories were looked at.
        looked: usize,
    },
    /// The tree is larger than any node's.
    #[error("gave up looking for the pod with uid {uid} after {looked} directories below {}", root.display())]
    SearchLimit {
        /// The uid.
        uid: String,
        /// Where the search began.
        root: PathBuf,
        /// How many directories were looked at.
        looked: usize,
    },
    /// Two cgroups have the pod's uid in their names.
    #[error(
        "the pod with uid {uid} has more than one cgroup, {} and {}: remove the stale one, or let the runtime say \
         which (\"capabilities\": {{\"cgroupPath\": true}})", first.display(), second.display()
    )]
    Ambiguous {
        /// The uid.
        uid: String,
        /// One.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// The directory is on another file system.
    #[error("{} is not a cgroup v2 directory", path.display())]
    NotCgroup2 {
        /// The directory.
        path: PathBuf,
    },
    /// The cgroup was removed meanwhile.
    #[error("the cgroup {} is being removed: the pod is going away", path.display())]
    Dying {
        /// The cgroup.
        path: PathBuf,
    },
    /// Somebody's program forbids ours.
    #[error(
        "cannot attach {hook} below {}: program {program} is attached there exclusively (BPF_PROG_ATTACH without \
         BPF_F_ALLOW_MULTI); have its owner attach it with multi or a bpf_link (`bpftool cgroup show {}`)",
        cgroup.display(), cgroup.display()
    )]
    Exclusive {
        /// The pod's cgroup or one of its ancestors.
        cgroup: PathBuf,
        /// The hook.
        hook: Hook,
        /// The kernel's id of the program.
        program: u32,
    },
    /// The programs of a cgroup cannot be listed.
    #[error("cannot list the {hook} programs of the cgroup {}: {source}", cgroup.display())]
    Query {
        /// The cgroup.
        cgroup: PathBuf,
        /// The hook.
        hook: Hook,
        /// Why; EPERM means that CAP_NET_ADMIN is missing.
        source: SyscallError,
    },
    /// A directory cannot be opened or read.
    #[error(transparent)]
    Path(#[from] PathError),
}
