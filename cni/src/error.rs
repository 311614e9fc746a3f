//! The one table of error codes: 1 to 99 are the specification's, 100 and up are ours.
//!
//! `msg` says in a few words what failed; `details` names what was tried, on what and what to do. The kubelet
//! shows both in the pod's events, one after the other.

use std::io;
use std::path::PathBuf;

use redirect_user::enrol::{self, source};
use redirect_user::kernel::sys;
use redirect_user::node::lock;
use redirect_user::pod::cgroup;
use redirect_user::policy::annotations;
use redirect_user::printable::printable;
use redirect_user::{attach, inspect, ready};
use thiserror::Error as ThisError;

use crate::version::Version;

/// Why a verb failed. The text is the `details` of the reply.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    #[error("the configuration has cniVersion {found:?}; redirect-cni speaks {}", Version::NAMES.join(", "))]
    Version { found: String },
    #[error("{verb} is part of the specification since {since}; the configuration has cniVersion {}", found.name())]
    Verb { verb: &'static str, since: &'static str, found: Version },
    #[error("{key} is {value:?}; supported are {supported}")]
    Unsupported { key: &'static str, value: String, supported: &'static str },
    #[error(
        "container {container} has no redirection for {ifname}, though its pod {pod} is to be redirected; delete the \
         pod: the ADD of the one in its place redirects it"
    )]
    UnknownContainer { container: String, ifname: String, pod: String },
    #[error("{variable} {problem}")]
    Env { variable: &'static str, problem: String },
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("{what}: {problem}")]
    Decode { what: String, problem: String },
    #[error("configuration key {key}: {problem}")]
    Conf { key: String, problem: String },
    #[error("{}: {problem}", path.display())]
    Netns { path: PathBuf, problem: String },
    #[error(transparent)]
    Enrol(#[from] enrol::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Attach(#[from] attach::Error),
    #[error("{}; {outcome}", inspect::describe(drift))]
    Drift {
        drift: Vec<inspect::Drift>,
        /// What a repair came to.
        outcome: String,
    },
    #[error("{source}{}", if *attached > 0 && !matches!(source, ready::NotReady::Outside { .. }) {
        format!("; {attached} pods are attached according to their records: those whose links are gone send in clear \
                 until `redirect repair` has attached them again")
    } else {
        String::new()
    })]
    NotReady {
        source: ready::NotReady,
        /// Pods that are attached according to their records, and may be open.
        attached: usize,
    },
    #[error("{0}; please report this with the line above it on stderr")]
    Panic(String),
    #[error("{source}; {why}")]
    Forbidden { source: Box<Error>, why: &'static str },
}

impl Error {
    /// With the reason for it, where the process may not use bpf(2): what was tried says it in many ways, and
    /// in some not at all.
    pub(crate) fn explained(self) -> Error {
        let of_kernel = matches!(
            self,
            Error::Cgroup(_) | Error::Attach(_) | Error::Drift { .. } | Error::NotReady { .. }
        );
        if !of_kernel {
            return self;
        }
        match sys::forbidden() {
            Some(why) if !self.to_string().contains(why) => Error::Forbidden { source: Box::new(self), why },
            _ => self,
        }
    }

    /// The text for a line of the log and for the pod's events. What a pod's author, an agent or a
    /// configuration wrote may be quoted in it with all its characters: none of them ends the line or moves a
    /// cursor.
    pub(crate) fn one_line(&self) -> String {
        printable(&self.to_string())
    }

    /// The number and the few words of the reply.
    pub(crate) fn code(&self) -> (u32, &'static str) {
        match self {
            Error::Version { .. } | Error::Verb { .. } => (1, "incompatible CNI version"),
            Error::Unsupported { .. } => (2, "unsupported value in the network configuration"),
            Error::UnknownContainer { .. } => (3, "unknown container"),
            Error::Env { .. } | Error::Enrol(enrol::Error::OwnerGroups(_)) => {
                (4, "invalid environment variable")
            }
            Error::Io { .. } => (5, "I/O failure"),
            Error::Decode { .. } => (6, "cannot decode the input"),
            Error::Conf { .. } => (7, "invalid network configuration"),
            Error::Netns { .. } => (8, "invalid network namespace"),
            Error::Enrol(enrol::Error::Source(error)) if error.is_transient() => {
                (11, "pod details not available")
            }
            Error::Lock(_) | Error::Attach(attach::Error::Lock(_)) => (11, "the node is busy"),
            Error::NotReady { attached: 0, .. } => (50, "redirect-cni is not available on this node"),
            Error::NotReady { .. } => {
                (51, "redirect-cni is not available, and redirected pods may send in clear")
            }
            Error::Panic(_) => (100, "internal error"),
            Error::Forbidden { source, .. } => source.code(),
            Error::Enrol(enrol::Error::Annotations {
                source: annotations::Error::Unsupported { .. },
                ..
            }) => (102, "annotation not supported"),
            Error::Enrol(
                enrol::Error::Annotations { .. }
                | enrol::Error::Source(source::Error::Status { .. } | source::Error::ProxyConfig { .. }),
            ) => (101, "invalid annotation"),
            Error::Enrol(enrol::Error::OptOut { .. } | enrol::Error::RuntimeClass { .. }) => {
                (107, "the node's configuration refuses the pod")
            }
            Error::Attach(attach::Error::Interfaces { .. }) => (102, "annotation not supported"),
            Error::Enrol(enrol::Error::Source(_)) => (103, "pod details not usable"),
            Error::Cgroup(_) => (104, "pod cgroup not usable"),
            Error::Attach(_) => (105, "cannot change the pod's redirection"),
            Error::Drift { .. } => (106, "the pod's redirection is not as it was set up"),
        }
    }
}
