//! Why attach or detach failed, and what an operator can do about it.

use std::io;
use std::path::PathBuf;

use crate::attach::survey::MOST_ADDRESSES;
use crate::attach::{map, record};
use crate::kernel::filter::Filter;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::stamp::Lacking;
use crate::kernel::sys::SyscallError;
use crate::node::lock;
use crate::path_error::PathError;
use crate::pod::routes::Inexpressible;
use crate::pod::{netns, userns};
use crate::policy::parameters::EXCLUDE_INTERFACES;

/// Why attach or detach failed. Nothing is left half-done.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The programs could not be put on the node.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The programs on the node do not know what the policy needs.
    #[error(transparent)]
    Lacking(Box<Lacking>),
    /// The cgroup cannot be opened.
    #[error("cannot open the cgroup {path}: {source}; it must be the pod's directory in cgroup v2")]
    Cgroup { path: PathBuf, source: io::Error },
    /// The directory is not in a cgroup v2 hierarchy.
    #[error("{path} is not in a cgroup v2 file system; programs cannot be attached to cgroup v1")]
    NotCgroup2 { path: PathBuf },
    /// The pod's network namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The pod's user namespace.
    #[error(transparent)]
    Userns(#[from] userns::Error),
    /// The pod leaves by interfaces in a way that the maps cannot say.
    #[error("pod {pod}: annotation {EXCLUDE_INTERFACES}={interfaces:?} cannot be honoured: {source}")]
    Interfaces {
        /// The pod, or the container.
        pod: String,
        /// The annotation's value.
        interfaces: String,
        /// Why.
        source: Inexpressible,
    },
    /// The pod has more addresses than are kept for one.
    #[error(
        "the network namespace {path} has {count} addresses; at most {MOST_ADDRESSES} are kept for a pod"
    )]
    TooManyAddresses {
        /// How many.
        count: usize,
        /// The namespace.
        path: PathBuf,
    },
    /// A map.
    #[error(transparent)]
    Tables(#[from] map::Error),
    /// The record of the attachment.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A program could not be linked.
    #[error("cannot link {hook} to {target}: {source}{hint}", hint = link_hint(source))]
    Link {
        /// The hook.
        hook: Hook,
        /// Cgroup or namespace.
        target: PathBuf,
        source: SyscallError,
    },
    /// A pin could not be changed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The sidecar's listeners of a running pod could not be registered.
    #[error("cannot register the sidecar's listeners: {source}; restart the sidecar")]
    Listeners {
        /// Why.
        source: SyscallError,
    },
    /// The node's lock could not be taken.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// A filter's program is not pinned.
    #[error("cannot open the program {filter}: {source}; `redirect install` puts it on the node")]
    Filter {
        /// Which.
        filter: Filter,
        /// Why.
        source: SyscallError,
    },
    /// An interface's qdisc has room for filters in one direction only.
    #[error(
        "the guard cannot stand on {interface}: somebody gave it a qdisc of kind `ingress`, which has no egress; \
         replace it with `clsact`, or set the guard to `off`"
    )]
    ForeignQdisc {
        /// The interface.
        interface: String,
    },
    /// The boot id is needed to know whether a record is current.
    #[error("cannot read the boot id: {source}; is /proc mounted?")]
    BootId { source: io::Error },
}

impl Error {
    /// With the reason for which an upgrade failed that would have given the programs what they lack.
    #[must_use]
    pub fn after_upgrade(self, failed: Option<String>) -> Error {
        match self {
            Error::Lacking(lacking) => Error::Lacking(Box::new(Lacking { upgrade: failed, ..*lacking })),
            other => other,
        }
    }
}

/// What the operator can do about the two refusals that are not obvious.
fn link_hint(source: &SyscallError) -> &'static str {
    match source.errno() {
        Some(libc::EPERM) => {
            "; either CAP_BPF/CAP_NET_ADMIN is missing or a parent cgroup has a program attached exclusively \
             (see `bpftool cgroup tree`)"
        }
        Some(libc::EBUSY) => "; this program is linked there already: run `redirect gc`",
        Some(libc::ENOENT | libc::ENODEV) => "; the cgroup is being removed",
        _ => "",
    }
}
