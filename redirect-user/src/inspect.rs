//! What is attached, and whether it is as it should be.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use crate::attach::guard::{self, Fault};
use crate::attach::record::{self, Attachment};
use crate::attach::replan::{self, Stale};
use crate::attach::tables::Tables;
use crate::attach::{Error, entries, life};
use crate::ids::AttachmentId;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins::{self, AttachmentFolder, Generation};
use crate::kernel::sys;
use crate::node::Node;
use crate::pod::cgroup::Life;
use crate::pod::netns::Netns;

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
    /// The pod is attached by another ABI version, with programs and maps of its own.
    OtherVersion {
        /// Which.
        abi: u32,
    },
    /// The pod is gone, and the runtime has not called DEL.
    PodGone,
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
    /// The pod's policy does not need this hook any more: an attach was interrupted before it ended the link.
    LinkNotNeeded {
        /// The hook's name.
        hook: &'static str,
    },
    /// A filter of the guard is gone: somebody in the pod who has NET_ADMIN, or another user of `clsact`,
    /// took it away.
    FilterGone {
        /// The filter's name.
        filter: &'static str,
        /// The interface.
        interface: String,
    },
    /// A filter of the guard runs another program than the installed one, or is another pod's.
    FilterDiffers {
        /// The filter's name.
        filter: &'static str,
        /// The interface.
        interface: String,
    },
    /// The filters' entry in the map GUARD is not this pod's.
    GuardDiffers,
    /// The pod has no configuration: the programs leave it alone.
    NotEnrolled,
    /// The configuration is not what the record's policy says.
    ConfigDiffers,
    /// The pod has changed since the record was written; a re-plan mends it.
    NotCovered {
        /// What has changed.
        what: Stale,
    },
    /// The pod's entries in the other maps are not what the record's policy says.
    EntriesDiffer,
    /// The installation lacks pins.
    NotInstalled,
    /// Processes are in the pod's network namespace, and none in the cgroup that has the links.
    OutsideCgroup,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Drift::NoRecord => write!(f, "there is no record of this attachment"),
            Drift::EarlierBoot => write!(f, "the record is from an earlier boot"),
            Drift::OtherVersion { abi } => write!(
                f,
                "the pod is attached by ABI version {abi}, this is {}; `redirect upgrade` brings it over",
                pins::abi()
            ),
            Drift::PodGone => {
                write!(f, "the pod is gone, and no DEL has come: `redirect gc` removes what is left")
            }
            Drift::LinkGone { hook } => write!(f, "the link of {hook} is gone"),
            Drift::LinkDefunct { hook } => write!(f, "the link of {hook} is defunct: what it was on is gone"),
            Drift::WrongTarget { hook } => write!(f, "the link of {hook} is not on this pod"),
            Drift::WrongProgram { hook } => write!(f, "the link of {hook} runs another program"),
            Drift::LinkNotNeeded { hook } => {
                write!(f, "the link of {hook} is there, and the policy does not need it")
            }
            Drift::FilterGone { filter, interface } => {
                write!(f, "the filter {filter} on {interface} is gone")
            }
            Drift::FilterDiffers { filter, interface } => {
                write!(f, "the filter {filter} on {interface} is not the installed one for this pod")
            }
            Drift::GuardDiffers => write!(f, "the guard's entry in the map GUARD is not this pod's"),
            Drift::NotEnrolled => write!(f, "the pod has no configuration in the map PODS"),
            Drift::NotCovered { what } => write!(f, "not covered yet: {what}"),
            Drift::EntriesDiffer => write!(f, "the pod's entries in the maps are not what was attached"),
            Drift::NotInstalled => write!(f, "the node's programs or maps are not installed wholly"),
            Drift::OutsideCgroup => write!(
                f,
                "the pod's processes are not in the cgroup that was attached (a wrong cgroupPath, or a runtime whose \
                 sockets are not the host's) and send in clear"
            ),
            Drift::ConfigDiffers => write!(f, "the pod's configuration is not what was attached"),
        }
    }
}

/// What is wrong in one clause, however many links it concerns.
#[must_use]
pub fn describe(drift: &[Drift]) -> String {
    let gone = drift.iter().filter(|drift| matches!(drift, Drift::LinkGone { .. })).count();
    let defunct = drift.iter().filter(|drift| matches!(drift, Drift::LinkDefunct { .. })).count();
    let mut clauses = Vec::new();
    match gone {
        0 | 1 => {}
        _ => clauses.push(format!("{gone} links are gone")),
    }
    if defunct > 1 {
        clauses.push(format!("{defunct} links are defunct: what they were on is gone"));
    }
    let summed = |drift: &&Drift| {
        matches!(drift, Drift::LinkGone { .. }) && gone > 1
            || matches!(drift, Drift::LinkDefunct { .. }) && defunct > 1
    };
    clauses.extend(drift.iter().filter(|drift| !summed(drift)).map(Drift::to_string));
    clauses.join("; ")
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

/// The state of one filter of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterState {
    /// The filter's name.
    pub filter: &'static str,
    /// The interface that it is on.
    pub interface: String,
    /// The kernel's id of the program that it runs.
    pub program_id: Option<u32>,
    /// What is wrong, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// The state of every filter of an attachment; none where its network namespace cannot be looked into from
/// here.
///
/// # Errors
/// The namespace does not answer.
pub fn filters(node: &Node, attachment: &Attachment) -> Result<Vec<FilterState>, Error> {
    let netns = Netns::open(&attachment.netns).ok().filter(|netns| netns.cookie() == attachment.cookie);
    let Some(mut netns) = netns else { return Ok(Vec::new()) };
    let states = guard::inspect(node, attachment, &mut netns)?;
    Ok(states.into_iter().map(filter_state).collect())
}

fn filter_state((filter, interface, program_id, fault): guard::State) -> FilterState {
    let name = filter.name();
    let drift = fault.map(|fault| match fault {
        Fault::Gone => Drift::FilterGone { filter: name, interface: interface.clone() },
        Fault::OtherProgram | Fault::OtherPod => {
            Drift::FilterDiffers { filter: name, interface: interface.clone() }
        }
    });
    FilterState { filter: name, interface, program_id, drift }
}

/// The state of every link of an attachment: of those that its policy needs, and of others that it has.
///
/// # Errors
/// A folder cannot be read.
pub fn links(node: &Node, attachment: &Attachment) -> Result<Vec<LinkState>, Error> {
    let folder = pins::current(node).attachment(&attachment.id);
    let needed: Vec<_> = Hook::needed(&attachment.policy).collect();
    let mut states = Vec::new();
    for hook in Hook::ALL.iter().copied() {
        let state = || link_state(node, attachment, hook, &folder);
        if needed.contains(&hook) {
            states.push(state());
        } else if fs::symlink_metadata(folder.link(hook)).is_ok() {
            let drift = Some(Drift::LinkNotNeeded { hook: hook.name() });
            states.push(LinkState { drift, ..state() });
        }
    }
    Ok(states)
}

fn link_state(node: &Node, attachment: &Attachment, hook: Hook, folder: &AttachmentFolder) -> LinkState {
    let name = hook.name();
    let found = sys::obj_get(&folder.link(hook));
    let Ok(info) = found.and_then(sys::link_info) else {
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
    compare(node, &attachment)
}

/// Compares an attachment's record with the kernel: every link, every map entry, every change of the
/// namespace.
///
/// # Errors
/// Pins or maps cannot be read.
pub fn compare(node: &Node, attachment: &Attachment) -> Result<Vec<Drift>, Error> {
    if !attachment.of_this_boot() {
        return Ok(vec![Drift::EarlierBoot]);
    }
    // Where its cgroup is gone and processes are in its namespace, the rest is of interest.
    if life::of(node, attachment) == Life::Gone && !life::is_inhabited(attachment) {
        return Ok(vec![Drift::PodGone]);
    }
    if let Some(abi) = other_version(node, attachment)? {
        return Ok(vec![Drift::OtherVersion { abi }]);
    }
    let mut drift: Vec<_> = links(node, attachment)?.into_iter().filter_map(|link| link.drift).collect();
    drift.extend(filters(node, attachment)?.into_iter().filter_map(|filter| filter.drift));
    if install::installed(node) {
        if !guard::entered(node, attachment)? {
            drift.push(Drift::GuardDiffers);
        }
        drift.extend(compare_entries(node, attachment)?);
    } else {
        drift.push(Drift::NotInstalled);
    }
    if !life::outside_cgroup(std::slice::from_ref(attachment)).is_empty() {
        drift.push(Drift::OutsideCgroup);
    }
    let stale = replan::look(attachment)?.stale;
    drift.extend(stale.into_iter().filter(Stale::is_news).map(|what| Drift::NotCovered { what }));
    Ok(drift)
}

/// The ABI version that has the attachment, if it is not this one.
fn other_version(node: &Node, attachment: &Attachment) -> Result<Option<u32>, Error> {
    if pins::current(node).has(&attachment.id) {
        return Ok(None);
    }
    let has_it = |version: &Generation| version.has(&attachment.id);
    Ok(folders::generations(node)?.iter().find(|version| has_it(version)).map(Generation::abi))
}

fn compare_entries(node: &Node, attachment: &Attachment) -> Result<Option<Drift>, Error> {
    let tables = Tables::open(node)?;
    let (expected, entries) = entries::of(attachment);
    Ok(match tables.config(attachment.cookie)? {
        None => Some(Drift::NotEnrolled),
        Some(config) if config != expected => Some(Drift::ConfigDiffers),
        Some(_) => (!tables.holds(attachment.cookie, entries)?).then_some(Drift::EntriesDiffer),
    })
}
