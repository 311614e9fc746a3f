//! Attaches again what has lost its links, map entries or routes, from the records: a pin that was removed,
//! bpffs unmounted, an installation made again, a policy's entry deleted. A pod that is as it was attached is
//! left alone.

use std::fs;
use std::path::{Path, PathBuf};

use crate::attach::record::{self, Attachment};
use crate::attach::{self, Error, Request, life};
use crate::ids::AttachmentId;
use crate::inspect::{self, Drift};
use crate::kernel::folders;
use crate::kernel::install::{self, Ensured};
use crate::kernel::pins::{self, Generation};
use crate::node::Node;
use crate::node::lock::NodeLock;
use crate::path_error::is_gone;
use crate::pod::cgroup::{self, Life};
use crate::pod::netns::Netns;

/// What became of one pod.
#[derive(Debug)]
pub struct Repaired {
    /// The record as it is now.
    pub attachment: Attachment,
    /// What was wrong.
    pub drift: Vec<Drift>,
    /// Why it still is, if it is.
    pub error: Option<Error>,
}

/// Repairs the attachments of a container, or of the whole node; answers with those that needed it.
///
/// # Errors
/// The programs cannot be installed, or the records not be read. What fails for one pod is in its answer.
pub fn repair(node: &Node, lock: &NodeLock, container: Option<&str>) -> Result<Vec<Repaired>, Error> {
    record::set_aside(node, lock, container)?;
    // After a fresh installation the maps are empty: every pod needs its entries, whoever was asked for.
    let container = if install::ensure(node, lock)? == Ensured::Fresh { None } else { container };
    let records = match container {
        Some(id) => record::of_container(node, id)?,
        None => record::all(node)?,
    };
    let living: Vec<_> = records.into_iter().filter(|record| life::of(node, record) != Life::Gone).collect();
    for attachment in &living {
        // Before any link runs the installed programs they must know every pod: one that they do not know
        // they leave alone, and two sandboxes of one pod have their links in common.
        attach::restore(node, lock, attachment)?;
    }
    let mut repaired = Vec::new();
    for attachment in living {
        let drift = inspect::compare(node, &attachment)?;
        if drift.is_empty() {
            remove_older_folders(node, &attachment)?;
            continue;
        }
        let again = attach_again(node, lock, &attachment);
        let (attachment, error) = match again {
            Ok(attachment) => (attachment, None),
            Err(error) => (attachment, Some(error)),
        };
        tracing::warn!(
            container = attachment.id.container_id,
            pod = attachment.pod.as_ref().map(tracing::field::display),
            drift = %inspect::describe(&drift),
            error = error.as_ref().map(tracing::field::display),
            "repaired"
        );
        repaired.push(Repaired { attachment, drift, error });
    }
    install::remove_unused(node, lock).map_err(Error::from)?;
    Ok(repaired)
}

/// Whether another attachment has lost its pins, or all have: a few looks, cheap enough for every ADD.
pub(crate) fn is_needed(node: &Node, besides: &AttachmentId, installed: bool) -> bool {
    let (own_version, all) = (pins::current(node), folders::generations(node).unwrap_or_default());
    let recorded = fs::read_dir(node.attachments()).into_iter().flatten().flatten();
    let own = node.attachment(besides);
    let mut recorded = recorded
        .map(|entry| entry.path())
        .filter(|path| *path != own && path.extension().is_some_and(|extension| extension == "json"));
    let missing = |path: PathBuf| {
        let name = path.file_stem()?.to_str()?.to_owned();
        let (container, _) = name.split_once('.')?;
        // A newer version's pods are its own.
        let kept = |generation: &Generation| {
            !is_gone(&generation.pods().join(container)) && (installed || *generation != own_version)
        };
        (!all.iter().any(kept)).then_some(())
    };
    recorded.any(|path| missing(path.clone()).is_some() && may_run(&path))
}

/// Whether the pod of a record may have processes. One without has nothing that could send in clear, and most
/// likely its own ADD is under way: of a crowd that starts at once, none repairs the others.
fn may_run(record: &Path) -> bool {
    let attachment = fs::read(record).ok().and_then(|text| serde_json::from_slice::<Attachment>(&text).ok());
    attachment.is_none_or(|attachment| {
        !matches!(cgroup::life(&attachment.cgroup, attachment.cgroup_id), Life::Empty | Life::Gone)
    })
}

/// Whether other containers than this one have pins of this version.
#[must_use]
pub fn others_have_pins(node: &Node, besides: &AttachmentId) -> bool {
    let own = pins::current(node).container(&besides.container_id);
    folders::list(&pins::current(node).pods()).is_ok_and(|pods| pods.iter().any(|pod| *pod != own))
}

/// ADD again, as the record says.
fn attach_again(node: &Node, lock: &NodeLock, attachment: &Attachment) -> Result<Attachment, Error> {
    // The addresses that were the clients' first: they stay so.
    let sources = attachment.changes.local_routes.iter().map(|route| route.source);
    let request = Request {
        id: attachment.id.clone(),
        cgroup: attachment.cgroup.clone(),
        netns: namespace(attachment),
        policy: attachment.policy.clone(),
        pod: attachment.pod.clone(),
        network: attachment.network.clone(),
        addresses: sources.chain(attachment.addresses.iter().copied()).collect(),
        made_cgroups: attachment.made_cgroups.clone(),
    };
    let attached = attach::attach(node, lock, &request)?;
    remove_older_folders(node, attachment)?;
    Ok(attached)
}

/// Ends what other versions have of an attachment that is this version's now.
fn remove_older_folders(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    for folder in older_folders(node, attachment) {
        attach::links::remove_links(&folder)?;
        let _ = fs::remove_dir(folder.container());
    }
    Ok(())
}

/// The folders that the attachment has in other versions: what was in them is shared with this version's.
fn older_folders(node: &Node, attachment: &Attachment) -> Vec<pins::AttachmentFolder> {
    let generations = folders::generations(node).unwrap_or_default();
    let others = generations.into_iter().filter(|generation| *generation != pins::current(node));
    let folders = others.map(|generation| generation.attachment(&attachment.id));
    folders.filter(|folder| !is_gone(folder.path())).collect()
}

/// The pod's namespace: where it was, or, if the runtime has taken that path away, a process of the pod's
/// that is in it.
fn namespace(attachment: &Attachment) -> PathBuf {
    let same = |path: &PathBuf| Netns::open(path).is_ok_and(|netns| netns.cookie() == attachment.cookie);
    if same(&attachment.netns) {
        return attachment.netns.clone();
    }
    let pids = cgroup::pids(&attachment.cgroup).unwrap_or_default();
    let mut paths = pids.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    paths.find(same).unwrap_or_else(|| attachment.netns.clone())
}
