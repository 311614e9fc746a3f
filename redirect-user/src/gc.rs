//! Collects what belongs to pods that are gone: attachments whose cgroup no longer exists, pins without a
//! record, records of an earlier boot, map entries that nothing claims. Whether a pod is gone the kernel
//! says, never a path: a container in which the pod's paths cannot be seen must not remove a living pod's
//! redirection.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::attach::record::{self, Attachment};
use crate::attach::{Error, detach, guard, life, tables};
use crate::ids::{AttachmentId, PodRef};
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins::AttachmentFolder;
use crate::kernel::sys;
use crate::node::lock::NodeLock;
use crate::node::{Node, names};
use crate::pod::cgroup::{self, Life};
use crate::verify;

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was removed, and why.
    pub removed: Vec<Removed>,
    /// Attachments that the runtime does not list any more, but whose pods run: they stay until those end.
    pub orphans: Vec<AttachmentId>,
    /// Cookies of pods whose map entries had no owner.
    pub cookies: Vec<u64>,
}

/// One attachment that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Its container.
    pub container_id: String,
    /// Its pod, where that is known.
    pub pod: Option<PodRef>,
    /// Why.
    pub why: &'static str,
}

/// What the caller says about an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It is to stay.
    Yes,
    /// It is to go, as soon as its pod does not run.
    No,
    /// It is not the caller's business: it goes when its pod is gone.
    Unasked,
    /// It is to go at once, even if its pod runs and will send in clear.
    Forced,
}

/// Removes what is not listed and does not run, and everything that has no living pod.
///
/// `listed` is asked about `None` for pins of a living pod whose record is lost: nothing says which
/// attachment they are, and to remove them lets the pod's traffic past its sidecar.
///
/// # Errors
/// Something of ours cannot be read or removed.
pub fn collect(
    node: &Node,
    lock: &NodeLock,
    listed: impl Fn(Option<&Attachment>) -> Listed,
) -> Result<Collected, Error> {
    record::set_aside(node, lock, None)?;
    record::remove_unfinished(node, lock);
    let mut collected = Collected::default();
    let mut recorded = BTreeSet::new();
    for attachment in record::all(node)? {
        let wish = listed(Some(&attachment));
        if let Some(why) = reason_to_remove(node, &attachment, wish) {
            let AttachmentId { container_id, ifname } = &attachment.id;
            detach(node, lock, container_id, Some(ifname))?;
            let pod = attachment.pod.clone();
            collected.removed.push(Removed { container_id: container_id.clone(), pod, why });
            continue;
        }
        recorded.insert(attachment.id.container_id.clone());
        let orphaned = if wish == Listed::Unasked { attachment.orphaned } else { wish == Listed::No };
        if orphaned {
            collected.orphans.push(attachment.id.clone());
        }
        if orphaned != attachment.orphaned {
            Attachment { orphaned, ..attachment }.store(node)?;
        }
    }
    collected.removed.extend(remove_unrecorded(node, lock, &recorded, listed(None))?);
    collected.cookies = sweep_unclaimed(node)?;
    install::remove_unused(node, lock)?;
    if let Ok(root) = cgroup::root(None) {
        verify::sweep(&root);
    }
    Ok(collected)
}

fn reason_to_remove(node: &Node, attachment: &Attachment, wish: Listed) -> Option<&'static str> {
    if !attachment.of_this_boot() {
        return Some("its record is of an earlier boot");
    }
    if verify::is_left_over(attachment) {
        return Some("it was a scratch pod of `redirect verify`, which is over");
    }
    if life::of(node, attachment) == Life::Gone {
        return Some("its cgroup is gone, and with it its processes");
    }
    match wish {
        Listed::Forced => Some("it was asked for"),
        Listed::No if !life::runs(node, attachment) => {
            Some("the runtime does not list it, and it does not run")
        }
        Listed::Unasked if attachment.orphaned && !life::runs(node, attachment) => {
            Some("the runtime stopped listing it, and it does not run any more")
        }
        _ => None,
    }
}

fn remove_unrecorded(
    node: &Node,
    lock: &NodeLock,
    recorded: &BTreeSet<String>,
    wish: Listed,
) -> Result<Vec<Removed>, Error> {
    let mut removed = Vec::new();
    for (container_id, folder) in unrecorded(node, recorded)? {
        if linked(&folder)? && wish != Listed::Forced {
            continue;
        }
        detach(node, lock, &container_id, None)?;
        removed.push(Removed { container_id, pod: None, why: "pins without a record, and no pod" });
    }
    Ok(removed)
}

/// The containers that have pins and no record that can be read, with the folders of their pins.
fn unrecorded(node: &Node, recorded: &BTreeSet<String>) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    for generation in folders::generations(node)? {
        for folder in folders::list(&generation.pods())? {
            let name = folder.file_name().and_then(|name| names::decode(name.to_str()?));
            found.extend(name.filter(|id| !recorded.contains(id)).map(|id| (id, folder)));
        }
    }
    Ok(found)
}

/// The containers of which the caller has read no record, and whose links hold a cgroup that may have
/// processes: these would send in clear without the pins.
///
/// # Errors
/// The pins cannot be listed.
pub fn unrecorded_pods(node: &Node, known: &[Attachment]) -> Result<BTreeSet<String>, Error> {
    let recorded = known.iter().map(|attachment| attachment.id.container_id.clone()).collect();
    let mut found = BTreeSet::new();
    for (container_id, folder) in unrecorded(node, &recorded)? {
        if folders::of_container(&folder)?.iter().any(may_hold_processes) {
            found.insert(container_id);
        }
    }
    Ok(found)
}

/// Whether a link of the attachment has a cgroup in which processes are, or may be: what cannot be looked at
/// counts as yes.
fn may_hold_processes(folder: &AttachmentFolder) -> bool {
    let holds = |target| !matches!(cgroup::life(Path::new(""), target), Life::Empty | Life::Gone);
    any_target(folder, Hook::ALL.iter().filter(|hook| hook.on_cgroup()), holds)
}

/// Whether a container's pins hold a link whose cgroup or namespace is still there.
fn linked(container: &Path) -> Result<bool, Error> {
    Ok(folders::of_container(container)?.iter().any(|folder| any_target(folder, Hook::ALL.iter(), |_| true)))
}

/// Whether a link of the attachment has a target that is still there, and of which this is true. What cannot
/// be looked at is not gone.
fn any_target<'a>(
    folder: &AttachmentFolder,
    mut hooks: impl Iterator<Item = &'a Hook>,
    is_so: impl Fn(u64) -> bool,
) -> bool {
    hooks.any(|hook| match sys::obj_get(&folder.link(*hook)).and_then(sys::link_info) {
        Ok(info) => info.target != 0 && is_so(info.target),
        Err(error) => error.errno() != Some(libc::ENOENT),
    })
}

/// The pods that a record or a folder of pins names.
fn claimed(node: &Node) -> Result<BTreeSet<u64>, Error> {
    let mut cookies: BTreeSet<u64> =
        record::all(node)?.into_iter().map(|attachment| attachment.cookie).collect();
    for generation in folders::generations(node)? {
        for folder in folders::attachments(&generation)? {
            cookies.extend(folders::cookies(&folder)?);
        }
    }
    Ok(cookies)
}

fn sweep_unclaimed(node: &Node) -> Result<Vec<u64>, Error> {
    let claimed = claimed(node)?;
    let mut swept = BTreeSet::new();
    for generation in folders::generations(node)? {
        swept.extend(tables::sweep(&generation, |cookie| !claimed.contains(&cookie))?);
    }
    if install::installed(node) {
        guard::free_unclaimed(node, &claimed)?;
    }
    Ok(swept.into_iter().collect())
}
