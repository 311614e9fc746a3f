//! What is attached, and whether it is as it should be.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use crate::attach::Error;
use crate::attach::entries;
use crate::attach::record::{self, Attachment};
use crate::attach::replan::{self, Stale};
use crate::attach::tables::Tables;
use crate::ids::AttachmentId;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins::{self, AttachmentFolder};
use crate::kernel::sys;
use crate::node::{Node, is_bpffs};

/// The state of one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkState {
    /// The hook's name.
    pub hook: &'static str,
    /// The kernel's id of the link.
    pub link_id: Option<u32>,
    /// The kernel's id of the program that it runs.
    pub program_id: Option<u32>,
    /// What is wrong, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// A difference between what was attached and what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Drift {
    /// There is no record of the attachment.
    NoRecord,
    /// The record belongs to an earlier boot.
    EarlierBoot,
    /// The link's pin is gone.
    LinkGone {
        /// The hook's name.
        hook: &'static str,
    },
    /// The link's cgroup or namespace is gone.
    LinkDefunct {
        /// The hook's name.
        hook: &'static str,
    },
    /// The link is on another cgroup or namespace than the pod's.
    WrongTarget {
        /// The hook's name.
        hook: &'static str,
    },
    /// The link runs another program than the installed one.
    WrongProgram {
        /// The hook's name.
        hook: &'static str,
    },
    /// The pod has no configuration: the programs leave it alone.
    NotEnrolled,
    /// The configuration is not what the record's policy says.
    ConfigDiffers,
    /// The pod has changed since the record was written; a re-plan mends it.
    NotCovered {
        /// What has changed.
        what: Stale,
    },
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Drift::NoRecord => write!(f, "there is no record of this attachment"),
            Drift::EarlierBoot => write!(f, "the record is from an earlier boot"),
            Drift::LinkGone { hook } => write!(f, "the link of {hook} is gone"),
            Drift::LinkDefunct { hook } => write!(f, "the link of {hook} is defunct: what it was on is gone"),
            Drift::WrongTarget { hook } => write!(f, "the link of {hook} is not on this pod"),
            Drift::WrongProgram { hook } => write!(f, "the link of {hook} runs another program"),
            Drift::NotEnrolled => write!(f, "the pod has no configuration in the map PODS"),
            Drift::NotCovered { what } => write!(f, "not covered yet: {what}"),
            Drift::ConfigDiffers => write!(f, "the pod's configuration is not what was attached"),
        }
    }
}

/// All attachments of the node.
///
/// # Errors
/// A record cannot be read.
pub fn list(node: &Node) -> Result<Vec<Attachment>, Error> {
    Ok(record::all(node)?)
}

/// The attachments of a container.
///
/// # Errors
/// A record cannot be read.
pub fn find(node: &Node, container_id: &str) -> Result<Vec<Attachment>, Error> {
    Ok(record::of_container(node, container_id)?)
}

/// The state of every link of an attachment.
///
/// # Errors
/// A folder cannot be read.
pub fn links(node: &Node, attachment: &Attachment) -> Result<Vec<LinkState>, Error> {
    // Of several interfaces of a container, one holds the links.
    let folders = folders::of_container(pins::current(node).attachment(&attachment.id).container())?;
    Ok(Hook::needed(&attachment.policy).map(|hook| link_state(node, attachment, hook, &folders)).collect())
}

fn link_state(node: &Node, attachment: &Attachment, hook: Hook, folders: &[AttachmentFolder]) -> LinkState {
    let name = hook.name();
    let found = folders.iter().find_map(|folder| sys::obj_get(&folder.link(hook)).ok());
    let Some(info) = found.and_then(|link| sys::link_info(link).ok()) else {
        let drift = Some(Drift::LinkGone { hook: name });
        return LinkState { hook: name, link_id: None, program_id: None, drift };
    };
    let expected = if hook.on_cgroup() {
        Some(attachment.cgroup_id)
    } else {
        fs::metadata(&attachment.netns).ok().map(|metadata| metadata.ino())
    };
    let installed = sys::obj_get(&pins::current(node).program(hook)).and_then(sys::program_id).ok();
    let drift = if info.target == 0 {
        Some(Drift::LinkDefunct { hook: name })
    } else if expected.is_some_and(|target| target != info.target) {
        Some(Drift::WrongTarget { hook: name })
    } else if hook.on_cgroup() && installed != Some(info.program_id) {
        Some(Drift::WrongProgram { hook: name })
    } else {
        None
    };
    LinkState { hook: name, link_id: Some(info.id), program_id: Some(info.program_id), drift }
}

/// Compares an attachment with what is there; empty when all is well.
///
/// # Errors
/// Records, pins or maps cannot be read.
pub fn check(node: &Node, id: &AttachmentId) -> Result<Vec<Drift>, Error> {
    let Some(attachment) = find(node, &id.container_id)?.into_iter().find(|a| a.id == *id) else {
        return Ok(vec![Drift::NoRecord]);
    };
    if !attachment.of_this_boot() {
        return Ok(vec![Drift::EarlierBoot]);
    }
    let mut drift: Vec<_> = links(node, &attachment)?.into_iter().filter_map(|link| link.drift).collect();
    if !install::installed(node) {
        drift.push(Drift::NotEnrolled);
        return Ok(drift);
    }
    match Tables::open(node)?.config(attachment.cookie)? {
        None => drift.push(Drift::NotEnrolled),
        Some(config) => {
            let (expected, _) = entries::of(&attachment);
            if (redirect_common::PodConfig { trace_until: 0, ..config }) != expected {
                drift.push(Drift::ConfigDiffers);
            }
        }
    }
    let stale = replan::look(&attachment)?.stale;
    drift.extend(stale.into_iter().map(|what| Drift::NotCovered { what }));
    Ok(drift)
}

/// Why an ADD would not work on this node.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// bpffs is missing.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The process may not use bpf(2).
    #[error("not permitted to use bpf(2): CAP_BPF and CAP_NET_ADMIN (or root) are needed")]
    Privileges,
}

/// Whether an ADD would work: a bpf file system, and the privilege to use it.
///
/// # Errors
/// What is missing.
pub fn ready(node: &Node) -> Result<(), NotReady> {
    if !is_bpffs(&node.bpffs).unwrap_or(false) {
        return Err(install::Error::NoBpffs { path: node.bpffs.clone() }.into());
    }
    if !sys::may_use_bpf() {
        return Err(NotReady::Privileges);
    }
    Ok(())
}
