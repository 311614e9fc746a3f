//! DEL: takes back what attach did, in reverse, as far as it is there. What is gone already is fine.

use std::fs;
use std::path::Path;

use crate::attach::error::Error;
use crate::attach::record::{self, Attachment};
use crate::attach::tables::{self, Tables};
use crate::attach::{entries, guard, life, links, map};
use crate::ids::AttachmentId;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins::{self, AttachmentFolder, Generation};
use crate::kernel::sys;
use crate::node::lock::NodeLock;
use crate::node::{Node, fault, names};
use crate::path_error::is_gone;
use crate::pod::netns::{self, Netns};

/// Ends the redirection of a container, or of one of its interfaces. `false` when there was nothing.
///
/// What is gone already is fine: pins, map entries, the namespace, the record itself. A record that cannot be
/// read is set aside, and what it was for ends as if there had been none.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub fn detach(node: &Node, lock: &NodeLock, container_id: &str, ifname: Option<&str>) -> Result<bool, Error> {
    record::set_aside(node, lock, Some(container_id))?;
    let mut found = false;
    for attachment in record::of_container(node, container_id)? {
        if ifname.is_none_or(|name| name == attachment.id.ifname) {
            undo(node, lock, &attachment)?;
            found = true;
        }
    }
    Ok(remove_unrecorded(node, container_id, ifname)? || found)
}

/// Whether there is anything of a container: a record, readable or not, or pins of whichever version. To see
/// that there is nothing needs no lock and no privilege; what cannot be seen counts as something.
#[must_use]
pub fn has_anything(node: &Node, container_id: &str) -> bool {
    let recorded = record::exists(node, container_id).unwrap_or(true);
    let pinned = |generations: Vec<Generation>| {
        generations.iter().any(|generation| !is_gone(&generation.container(container_id)))
    };
    recorded || folders::generations(node).map_or(true, pinned)
}

/// Ends what an id of the runtime's was attached to before: the same id now names another network namespace.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub(crate) fn detach_stale(
    node: &Node,
    lock: &NodeLock,
    id: &AttachmentId,
    cookie: u64,
) -> Result<(), Error> {
    match stale(node, id, cookie)? {
        Some(other) => undo(node, lock, &other),
        None => Ok(()),
    }
}

/// The attachment of this id to another network namespace.
pub(crate) fn stale(node: &Node, id: &AttachmentId, cookie: u64) -> Result<Option<Attachment>, Error> {
    Ok(record::of(node, id)?.filter(|other| other.cookie != cookie))
}

/// Where bpf(2) is refused, links and filters would go all the same, and entries and record would stay:
/// nothing is begun then. A table that is not there is none to empty.
fn assert_permitted(node: &Node) -> Result<(), Error> {
    match sys::obj_get(&pins::current(node).map("PODS")) {
        Err(source) if matches!(source.errno(), Some(libc::EACCES | libc::EPERM)) => {
            Err(map::Error::Scan { map: "PODS", source }.into())
        }
        _ => Ok(()),
    }
}

/// Takes back what attach did for this record, in whichever version's folders it is.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub(crate) fn undo(node: &Node, _lock: &NodeLock, attachment: &Attachment) -> Result<(), Error> {
    assert_permitted(node)?;
    let namespace = others_of_namespace(node, attachment)?;
    let folders: Vec<_> =
        folders::generations(node)?.iter().map(|generation| generation.attachment(&attachment.id)).collect();
    let namespace_gone = folders.iter().any(links::namespace_gone);
    // Before anything is removed: who may not enter it could not take the filters away, and they would keep a
    // pod closed that has no record any more.
    let netns = match namespace {
        Namespace::Ours if attachment.of_this_boot() => same_namespace(attachment)?,
        _ => None,
    };
    for folder in &folders {
        links::remove_links(folder)?;
    }
    fault::point("detach-links");
    if attachment.of_this_boot() {
        match namespace {
            Namespace::Ours => forget_pod(node, attachment, netns, namespace_gone)?,
            Namespace::Shared(Some(other)) => leave_to(node, &other)?,
            Namespace::Shared(None) => {}
        }
    }
    fault::point("detach-tables");
    for folder in &folders {
        remove_if_empty(folder.container());
    }
    attachment.forget(node)?;
    for path in attachment.made_cgroups.iter().rev() {
        // The runtime may have taken it over, and then it is not empty or not there.
        remove_if_empty(path);
    }
    Ok(())
}

/// Whose the entries of a network namespace are.
enum Namespace {
    Ours,
    /// Another attachment's, too: another interface, or another container in the same namespace.
    Shared(Option<Box<Attachment>>),
}

fn others_of_namespace(node: &Node, attachment: &Attachment) -> Result<Namespace, Error> {
    // The attachment itself may have several names for its link, in folders of several versions.
    let (mut owners, mut ours) = (0, 0);
    for generation in folders::generations(node)? {
        let found = links::owners(&generation.attachment(&attachment.id).link(Hook::Inbound))?;
        owners = owners.max(found);
        ours += u64::from(found > 0);
    }
    if owners > 0 && owners <= ours {
        return Ok(Namespace::Ours);
    }
    // No pin tells, or it tells of others: the records say who.
    let other = record::all(node)?
        .into_iter()
        .find(|other| other.id != attachment.id && other.cookie == attachment.cookie && other.of_this_boot());
    Ok(if other.is_some() || owners > ours {
        Namespace::Shared(other.map(Box::new))
    } else {
        Namespace::Ours
    })
}

fn remove_if_empty(folder: &Path) {
    // Not empty when something else is attached there.
    let _ = fs::remove_dir(folder);
}

/// The namespace's entries become those of the attachment that stays.
fn leave_to(node: &Node, other: &Attachment) -> Result<(), Error> {
    if install::installed(node) {
        let (config, entries) = entries::of(other);
        Tables::open(node)?.replace(other.cookie, &config, &entries)?;
    }
    Ok(())
}

/// Removes the guard, the pod's map entries, and what was added to its namespace, if that is still the same
/// namespace.
fn forget_pod(
    node: &Node,
    attachment: &Attachment,
    mut netns: Option<Netns>,
    namespace_gone: bool,
) -> Result<(), Error> {
    // The filters go before the configuration: without one they let nothing pass. A pod that cannot be seen
    // from here may be alive, and its filters with it: they stay closed.
    match &mut netns {
        Some(netns) => withdraw(node, attachment, netns)?,
        None if namespace_gone => guard::free(node, attachment)?,
        None => {}
    }
    for generation in folders::generations(node)? {
        if generation == pins::current(node) && install::installed(node) {
            let (_, entries) = entries::of(attachment);
            Tables::open(node)?.remove(attachment.cookie, &entries)?;
        } else {
            tables::sweep(&generation, |cookie| cookie == attachment.cookie)?;
        }
    }
    if let Some(mut netns) = netns {
        take_back(&mut netns, attachment);
    }
    Ok(())
}

/// Takes the filters away. The namespace of a pod that does not run is about to vanish: where that fails
/// twice, it is logged, and they stay closed until then. Who may not do it is told, as somebody else may; and
/// so is who detaches a running pod, which they would cut off without a record that says why.
fn withdraw(node: &Node, attachment: &Attachment, netns: &mut Netns) -> Result<(), Error> {
    let withdrawn =
        guard::withdraw(node, attachment, netns).or_else(|error| match same_namespace(attachment)? {
            Some(mut netns) => guard::withdraw(node, attachment, &mut netns),
            None => Err(error),
        });
    match withdrawn {
        Err(Error::Netns(error)) if !error.is_denied() && !life::runs(node, attachment) => {
            tracing::warn!(%error, "the guard's filters stay until the namespace is gone");
            Ok(())
        }
        other => other,
    }
}

/// The attachment's namespace, if its path still leads to it. A call that fails once is made again: for what
/// is in the namespace there is no later one.
///
/// # Errors
/// It is there and may not be entered.
fn same_namespace(attachment: &Attachment) -> Result<Option<Netns>, Error> {
    let open = || Netns::open(&attachment.netns);
    match open().or_else(|_| open()) {
        Ok(netns) => Ok(Some(netns).filter(|netns| netns.cookie() == attachment.cookie)),
        Err(error) if error.is_denied() => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Takes back the changes in the pod's namespace, if it can be reached.
pub(crate) fn forget_namespace(attachment: &Attachment) {
    if let Ok(Some(mut netns)) = same_namespace(attachment) {
        take_back(&mut netns, attachment);
    }
}

/// The namespace is about to vanish, so what cannot be taken back, after a second try, is logged only.
fn take_back(netns: &mut Netns, attachment: &Attachment) {
    let mut failed = undo_changes(netns, attachment);
    if !failed.is_empty()
        && let Ok(Some(mut netns)) = same_namespace(attachment)
    {
        failed = undo_changes(&mut netns, attachment);
    }
    for error in failed {
        tracing::warn!(%error, "left as it is");
    }
}

/// Undoes each change, and returns what could not be undone. What is gone already is no failure.
fn undo_changes(netns: &mut Netns, attachment: &Attachment) -> Vec<netns::Error> {
    let changes = &attachment.changes;
    let passthrough = if changes.passthrough6 { netns.remove_passthrough6().map(drop) } else { Ok(()) };
    let dns = changes.dns.as_ref().map_or(Ok(()), |dns| netns.close_dns(dns));
    let mut done = vec![passthrough, dns];
    done.extend(changes.local_routes.iter().map(|route| netns.remove_local_route(route)));
    done.into_iter().filter_map(Result::err).collect()
}

/// Pins of a container without a record: the state directory was lost. The folder's name says which entries
/// are its.
fn remove_unrecorded(node: &Node, container_id: &str, ifname: Option<&str>) -> Result<bool, Error> {
    let wanted = ifname.map(names::encode);
    let records = record::of_container(node, container_id)?;
    let mut found = false;
    for generation in folders::generations(node)? {
        let container = generation.container(container_id);
        let recorded: Vec<_> = records.iter().map(|record| generation.attachment(&record.id)).collect();
        for folder in folders::of_container(&container)? {
            let meant = wanted.as_ref().is_none_or(|name| folder.path().ends_with(name));
            if meant && !recorded.contains(&folder) {
                remove_folder(node, &folder)?;
                found = true;
            }
        }
        remove_if_empty(&container);
    }
    Ok(found)
}

fn remove_folder(node: &Node, folder: &AttachmentFolder) -> Result<(), Error> {
    let (cookies, shared) = (folders::cookies(folder)?, links::owners(&folder.link(Hook::Inbound))? > 1);
    links::remove_pins(folder)?;
    if !shared {
        for generation in folders::generations(node)? {
            tables::sweep(&generation, |cookie| cookies.contains(&cookie))?;
        }
    }
    // Only now: its name is all that tells a repeated call which entries to take out.
    Ok(folders::remove_tree(folder.path())?)
}
