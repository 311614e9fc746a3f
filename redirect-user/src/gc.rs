//! Collects what belongs to pods that are gone: attachments whose cgroup and namespace no longer exist, pins without a
//! record, records of an earlier boot, map entries that nobody claims.

use std::collections::BTreeSet;

use crate::attach::{self, Error, detach};
use crate::attachment::{self, Attachment};
use crate::install;
use crate::lock::NodeLock;
use crate::netns::Netns;
use crate::node::Node;
use crate::pins;
use crate::tables::Tables;

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
/// # Errors
/// Something of ours cannot be read or removed.
pub fn collect(node: &Node, lock: &NodeLock, keep: impl Fn(&Attachment) -> bool) -> Result<Collected, Error> {
    let mut collected = Collected::default();
    let mut recorded = BTreeSet::new();
    for attachment in attachment::all(node)? {
        let id = attachment.id.container_id.clone();
        if !keep(&attachment) || !alive(&attachment) {
            detach(node, lock, &id, Some(&attachment.id.ifname))?;
            collected.containers.push(id);
        } else {
            recorded.insert(id);
        }
    }
    for folder in attach::list(&pins::pods(node))? {
        let name = folder.file_name().and_then(|name| pins::decode(name.to_str()?));
        let Some(id) = name.filter(|id| !recorded.contains(id)) else { continue };
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

/// Whether the pod is still there: its namespace is the one that was attached, or, where the runtime has already taken
/// the path away, its cgroup exists.
fn alive(attachment: &Attachment) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let same_netns = || Netns::open(&attachment.netns).is_ok_and(|netns| netns.cookie() == attachment.cookie);
    let same_cgroup = || {
        std::fs::metadata(&attachment.cgroup).is_ok_and(|metadata| metadata.ino() == attachment.cgroup_id)
    };
    attachment.of_this_boot() && (same_netns() || same_cgroup())
}

fn sweep_unclaimed(node: &Node) -> Result<Vec<u64>, Error> {
    let claimed: BTreeSet<u64> = attachment::all(node)?.into_iter().map(|attachment| attachment.cookie).collect();
    let mut tables = Tables::open(node)?;
    let orphans: Vec<u64> = tables.cookies()?.into_iter().filter(|cookie| !claimed.contains(cookie)).collect();
    for cookie in &orphans {
        tables.sweep(*cookie)?;
    }
    Ok(orphans)
}
