//! DEL: takes back what attach did, in reverse, as far as it is there. What is gone already is fine.

use std::fs;
use std::path::Path;

use crate::attach::error::Error;
use crate::attach::record::{self, Attachment};
use crate::attach::tables::Tables;
use crate::attach::{entries, links};
use crate::ids::AttachmentId;
use crate::kernel::folders;
use crate::kernel::install;
use crate::kernel::pins;
use crate::node::lock::NodeLock;
use crate::node::{Node, fault, names};
use crate::pod::netns::Netns;

/// Ends the redirection of a container, or of one of its interfaces. `false` when there was nothing.
///
/// What is gone already is fine: pins, map entries, the namespace, the record itself.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub fn detach(
    node: &Node,
    _lock: &NodeLock,
    container_id: &str,
    ifname: Option<&str>,
) -> Result<bool, Error> {
    let mut found = false;
    for attachment in record::of_container(node, container_id)? {
        if ifname.is_none_or(|name| name == attachment.id.ifname) {
            undo(node, &attachment)?;
            found = true;
        }
    }
    Ok(remove_unrecorded(node, container_id, ifname)? || found)
}

/// Ends what an id of the runtime's was attached to before: the same id now names another network namespace.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub(crate) fn detach_stale(node: &Node, id: &AttachmentId, cookie: u64) -> Result<(), Error> {
    for other in record::of_container(node, &id.container_id)? {
        if other.id == *id && other.cookie != cookie {
            undo(node, &other)?;
        }
    }
    Ok(())
}

/// Takes back what attach did for this record.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub(crate) fn undo(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let folder = pins::current(node).attachment(&attachment.id);
    if let Some(sibling) = sibling(node, attachment)? {
        // Another interface of the same pod stays attached: the links are its links now.
        links::hand_over(node, &folder, &sibling)?;
        if attachment.of_this_boot() && install::installed(node) {
            let (config, entries) = entries::of(&sibling);
            Tables::open(node)?.replace(sibling.cookie, &config, &entries)?;
        }
    } else {
        links::remove_links(&folder)?;
        fault::point("detach-links");
        if attachment.of_this_boot() {
            forget_pod(node, attachment)?;
        }
    }
    fault::point("detach-tables");
    remove_if_empty(folder.container());
    attachment.forget(node)?;
    Ok(())
}

/// The attachment of another interface of the same pod.
fn sibling(node: &Node, attachment: &Attachment) -> Result<Option<Attachment>, Error> {
    let all = record::of_container(node, &attachment.id.container_id)?;
    Ok(all.into_iter().find(|other| other.id != attachment.id && other.cookie == attachment.cookie))
}

fn remove_if_empty(folder: &Path) {
    // Not empty when another interface of the container is attached.
    let _ = fs::remove_dir(folder);
}

/// Removes the pod's map entries and what was added to its namespace, if that is still the same namespace.
fn forget_pod(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    if install::installed(node) {
        let (_, entries) = entries::of(attachment);
        Tables::open(node)?.remove(attachment.cookie, &entries)?;
    }
    if let Ok(mut netns) = Netns::open(&attachment.netns)
        && netns.cookie() == attachment.cookie
    {
        if attachment.changes.passthrough6 {
            netns.remove_passthrough6()?;
        }
        if attachment.changes.mptcp_disabled {
            netns.set_mptcp(true)?;
        }
        for route in &attachment.changes.local_routes {
            netns.remove_local_route(route)?;
        }
    }
    Ok(())
}

/// Pins of a container without a record: the state directory was lost. The folder's name says which entries
/// are its.
fn remove_unrecorded(node: &Node, container_id: &str, ifname: Option<&str>) -> Result<bool, Error> {
    let pins = pins::current(node);
    let container = pins.container(container_id);
    let wanted = ifname.map(names::encode);
    let recorded: Vec<_> =
        record::of_container(node, container_id)?.iter().map(|a| pins.attachment(&a.id)).collect();
    let mut found = false;
    for folder in folders::of_container(&container)? {
        let meant = wanted.as_ref().is_none_or(|name| folder.path().ends_with(name));
        if !meant || recorded.contains(&folder) {
            continue;
        }
        let cookies = folders::cookies(&folder)?;
        links::remove_links(&folder)?;
        for cookie in cookies {
            Tables::open(node)?.sweep(cookie)?;
        }
        found = true;
    }
    remove_if_empty(&container);
    Ok(found)
}
