//! Collects what belongs to pods that are gone: attachments whose cgroup and namespace no longer exist, pins
//! without a record, records of an earlier boot, map entries without an owner.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::attach::record::{self, Attachment};
use crate::attach::tables::Tables;
use crate::attach::{Error, detach};
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins;
use crate::kernel::sys;
use crate::node::lock::NodeLock;
use crate::node::{Node, names};
use crate::pod::netns::Netns;

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Containers whose attachments or pins were removed.
    pub containers: Vec<String>,
    /// Cookies of pods whose map entries had no owner.
    pub cookies: Vec<u64>,
}

/// Removes everything for which `keep` is false and everything that has no living pod.
///
/// `keep` is asked about `None` for pins of a living pod whose record is lost: it is not known which
/// attachment they are, and to remove them lets the pod's traffic past its sidecar.
///
/// # Errors
/// Something of ours cannot be read or removed.
pub fn collect(
    node: &Node,
    lock: &NodeLock,
    keep: impl Fn(Option<&Attachment>) -> bool,
) -> Result<Collected, Error> {
    let mut collected = Collected::default();
    let mut recorded = BTreeSet::new();
    for attachment in record::all(node)? {
        let id = attachment.id.container_id.clone();
        if !keep(Some(&attachment)) || !alive(&attachment) {
            detach(node, lock, &id, Some(&attachment.id.ifname))?;
            collected.containers.push(id);
        } else {
            recorded.insert(id);
        }
    }
    for folder in folders::list(&pins::current(node).pods())? {
        let name = folder.file_name().and_then(|name| names::decode(name.to_str()?));
        let Some(id) = name.filter(|id| !recorded.contains(id)) else { continue };
        if linked(&folder)? && keep(None) {
            continue;
        }
        detach(node, lock, &id, None)?;
        collected.containers.push(id);
    }
    if install::installed(node) {
        collected.cookies = sweep_unclaimed(node)?;
    }
    collected.containers.sort();
    collected.containers.dedup();
    Ok(collected)
}

/// Whether the pod is still there: its namespace is the one that was attached, or, where the runtime has
/// already taken the path away, its cgroup exists.
fn alive(attachment: &Attachment) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let same_netns = || Netns::open(&attachment.netns).is_ok_and(|netns| netns.cookie() == attachment.cookie);
    let same_cgroup =
        || std::fs::metadata(&attachment.cgroup).is_ok_and(|metadata| metadata.ino() == attachment.cgroup_id);
    attachment.of_this_boot() && (same_netns() || same_cgroup())
}

/// Whether a container's pins hold a link whose cgroup or namespace is still there.
fn linked(container: &Path) -> Result<bool, Error> {
    for folder in folders::of_container(container)? {
        let alive =
            |pin: PathBuf| sys::obj_get(&pin).and_then(sys::link_info).is_ok_and(|info| info.target != 0);
        if Hook::ALL.iter().any(|hook| alive(folder.link(*hook))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pods that a record or a folder of pins names.
fn claimed(node: &Node) -> Result<BTreeSet<u64>, Error> {
    let mut cookies: BTreeSet<u64> =
        record::all(node)?.into_iter().map(|attachment| attachment.cookie).collect();
    for folder in folders::attachments(&pins::current(node))? {
        cookies.extend(folders::cookies(&folder)?);
    }
    Ok(cookies)
}

fn sweep_unclaimed(node: &Node) -> Result<Vec<u64>, Error> {
    let claimed = claimed(node)?;
    let mut tables = Tables::open(node)?;
    let orphans: Vec<u64> =
        tables.cookies()?.into_iter().filter(|cookie| !claimed.contains(cookie)).collect();
    for cookie in &orphans {
        tables.sweep(*cookie)?;
    }
    Ok(orphans)
}
