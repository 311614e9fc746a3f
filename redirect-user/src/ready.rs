//! Would an ADD work on this node? It is tried as far as that changes nothing.

use std::fs;
use std::path::Path;

use crate::attach::full;
use crate::attach::life;
use crate::attach::map::{self, Full};
use crate::attach::record::{self, Attachment};
use crate::kernel::capabilities::{self, Capability};
use crate::kernel::install;
use crate::kernel::pins;
use crate::kernel::stamp::Stamp;
use crate::kernel::sys;
use crate::node::{Node, is_bpffs, private};
use crate::path_error::{PathError, is_gone};
use crate::pod::cgroup::{self, Life};

/// Why an ADD would not work on this node.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// bpffs is missing, or the programs cannot be loaded.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The process lacks what an ADD needs. bpf(2) alone would not show it: it takes CAP_SYS_ADMIN for the
    /// others, which routes and filters do not.
    #[error(
        "an ADD needs {}, and this process lacks that; the runtime must start its plugins with it \
         (CapabilityBoundingSet of its unit, or its container's capabilities)",
        names(.0)
    )]
    Capabilities(Vec<Capability>),
    /// The process may not use bpf(2).
    #[error("{}", sys::why_forbidden())]
    Privileges,
    /// A program is refused.
    #[error("the kernel programs cannot be loaded: {0}; `redirect doctor` says what this node lacks")]
    Programs(String),
    /// There is no cgroup v2.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Records cannot be written.
    #[error("{0}; records of attachments are kept there")]
    State(#[from] PathError),
    /// A map has no room for one more pod.
    #[error(transparent)]
    Room(#[from] Box<Full>),
    /// The maps cannot be read.
    #[error(transparent)]
    Tables(#[from] map::Error),
    /// Processes are in the pods' namespaces, and not in the cgroups that have the links.
    #[error(
        "the processes of {pods} are not in the cgroup that was attached, and send in clear: cgroupPath or cgroupRoot \
         is wrong, or a runtime places them elsewhere; `redirect list` shows the pods"
    )]
    Outside {
        /// Some of them, by name.
        pods: String,
    },
    /// Pods are without their links.
    #[error(
        "{pods} attached pods have lost their links and send in clear; `redirect repair` attaches them again"
    )]
    Open {
        /// How many.
        pods: usize,
    },
}

impl NotReady {
    /// Whether pods that run are concerned, too.
    #[must_use]
    pub fn endangers_pods(&self) -> bool {
        matches!(
            self,
            NotReady::Install(install::Error::NoBpffs { .. })
                | NotReady::Open { .. }
                | NotReady::Outside { .. }
        )
    }
}

/// Whether an ADD would work: it is tried as far as that changes nothing.
///
/// # Errors
/// What is missing.
pub fn ready(node: &Node, cgroup_root: Option<&Path>) -> Result<(), NotReady> {
    if !is_bpffs(&node.bpffs).unwrap_or(false) {
        return Err(install::Error::NoBpffs { path: node.bpffs.clone() }.into());
    }
    // Where /proc does not tell, what follows has to show it.
    let lacking = capabilities::lacking().unwrap_or_default();
    if !lacking.is_empty() {
        return Err(NotReady::Capabilities(lacking));
    }
    if !sys::may_use_bpf() {
        return Err(NotReady::Privileges);
    }
    cgroup::root(cgroup_root)?;
    state_is_writable(node)?;
    if !install::installed(node) {
        install::try_load(false).map_err(NotReady::Programs)?;
    } else if let Some(full) = full::without_room(node)? {
        return Err(Box::new(full).into());
    }
    match open_pods(node) {
        0 => {}
        pods => return Err(NotReady::Open { pods }),
    }
    match names_of(&life::outside_cgroup_for_long(&record::all(node).unwrap_or_default())) {
        Some(pods) => Err(NotReady::Outside { pods }),
        None => Ok(()),
    }
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// Some pods by name, and how many more; none for none.
fn names_of(attachments: &[&Attachment]) -> Option<String> {
    const SHOWN: usize = 5;
    let name = |attachment: &&Attachment| match &attachment.pod {
        Some(pod) => format!("pod {pod}"),
        None => format!("container {}", attachment.id.container_id),
    };
    let mut names: Vec<_> = attachments.iter().take(SHOWN).map(name).collect();
    if attachments.len() > SHOWN {
        names.push(format!("{} more", attachments.len() - SHOWN));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

/// Tries to write in the state directory.
///
/// # Errors
/// It cannot be made or written.
pub fn state_is_writable(node: &Node) -> Result<(), PathError> {
    private::make_dir(&node.state_dir)?;
    let probe = node.state_dir.join(format!("probe-{}", std::process::id()));
    let tried = fs::write(&probe, "").and_then(|()| fs::remove_file(&probe));
    tried.map_err(PathError::at("write in", &node.state_dir))
}

/// Living pods of this boot that have none of their links.
fn open_pods(node: &Node) -> usize {
    let all = record::all(node).unwrap_or_default();
    let open = |attachment: &&Attachment| {
        let folders = life::folders_of(node, attachment);
        folders.iter().all(|folder| is_gone(folder.path()))
            && !matches!(life::of(node, attachment), Life::Gone)
    };
    all.iter().filter(open).count()
}

/// What is installed, if another build made it.
#[must_use]
pub fn other_build(node: &Node) -> Option<Stamp> {
    Stamp::read(&pins::current(node)).filter(|stamp| !stamp.is_own())
}
