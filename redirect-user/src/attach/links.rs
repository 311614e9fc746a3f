//! A pod's links and their pins: make, take over, hand over, remove.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::attach::Error;
use crate::attach::record::Attachment;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::object;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::pod::netns::Netns;

/// Makes the attachment's folder, with the one in it that names the pod.
pub(crate) fn make_folder(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let folder = pins::attachment(node, &attachment.id.container_id, &attachment.id.ifname);
    let path = folder.join(pins::cookie_name(attachment.cookie));
    fs::create_dir_all(&path).map_err(|source| Error::Pin { what: "make", path, source })
}

/// Puts one link in its place. It may be there already: our own from a repeated call, another interface's of the same
/// container, or, on the pod's cgroup, a leftover of the pod's previous sandbox.
pub(crate) fn link(
    node: &Node,
    attachment: &Attachment,
    hook: Hook,
    cgroup: &fs::File,
    netns: &Netns,
) -> Result<(), Error> {
    let id = &attachment.id;
    let pin = pins::attachment(node, &id.container_id, &id.ifname).join(hook.name());
    let target = if hook.on_cgroup() { attachment.cgroup_id } else { inode(netns.file()) };
    if let Some(own) = find_link(&list(&pins::container(node, &id.container_id))?, hook, target) {
        return take_over(&own, &pin);
    }
    remove_pin(&pin)?;
    if let Some(leftover) = leftover(node, attachment, hook, cgroup)? {
        return take_over(&leftover, &pin);
    }
    let failed = |source| link_error(attachment, hook, source);
    let link = create_link(node, attachment, hook, cgroup, netns).map_err(failed)?;
    sys::obj_pin(link.as_fd(), &pin).map_err(failed)
}

/// The link of another container to this very cgroup. The kernel links a program to a cgroup as often as it is asked
/// (seen on Linux 6.18), and one that runs twice takes its own rewriting of a destination for what the application
/// dialled, so the cgroup is asked first; only where it runs the program already are the pins searched for the link.
fn leftover(
    node: &Node,
    attachment: &Attachment,
    hook: Hook,
    cgroup: &fs::File,
) -> Result<Option<PathBuf>, Error> {
    if !hook.on_cgroup() {
        return Ok(None);
    }
    let failed = |source| link_error(attachment, hook, source);
    let program = sys::obj_get(&pins::program(node, hook)).and_then(sys::program_id).map_err(failed)?;
    let (attached, _) = sys::cgroup_programs(cgroup, hook).map_err(failed)?;
    if !attached.contains(&program) {
        return Ok(None);
    }
    Ok(find_link(&attachment_folders(node)?, hook, attachment.cgroup_id))
}

fn create_link(
    node: &Node,
    attachment: &Attachment,
    hook: Hook,
    cgroup: &fs::File,
    netns: &Netns,
) -> Result<OwnedFd, SyscallError> {
    if hook.on_cgroup() {
        sys::link_create(sys::obj_get(&pins::program(node, hook))?, cgroup, hook)
    } else {
        sys::link_create(object::load_entry(node, attachment.cookie)?, netns.file(), hook)
    }
}

fn link_error(attachment: &Attachment, hook: Hook, source: SyscallError) -> Error {
    let target = if hook.on_cgroup() { attachment.cgroup.clone() } else { attachment.netns.clone() };
    Error::Link { hook, target, source }
}

/// Files an existing link under this attachment; the program never stops running.
fn take_over(from: &Path, to: &Path) -> Result<(), Error> {
    if from == to {
        return Ok(());
    }
    fs::rename(from, to).map_err(|source| Error::Pin { what: "take over", path: from.into(), source })
}

fn inode(file: &fs::File) -> u64 {
    file.metadata().map(|metadata| metadata.ino()).unwrap_or(0)
}

/// A pinned link of this hook on this very target in one of the folders.
fn find_link(folders: &[PathBuf], hook: Hook, target: u64) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.join(hook.name()))
        .find(|pin| sys::obj_get(pin).and_then(sys::link_info).is_ok_and(|info| info.target == target))
}

/// `pods/<container>/<ifname>` of all attachments.
pub(crate) fn attachment_folders(node: &Node) -> Result<Vec<PathBuf>, Error> {
    let mut folders = Vec::new();
    for container in list(&pins::pods(node))? {
        folders.extend(list(&container)?);
    }
    Ok(folders)
}

/// The entries of a folder; none when it is gone.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Pin { what: "list", path: folder.into(), source }),
    }
}

/// Moves the links to another interface's folder.
pub(crate) fn hand_over(node: &Node, folder: &Path, sibling: &Attachment) -> Result<(), Error> {
    make_folder(node, sibling)?;
    let target = pins::attachment(node, &sibling.id.container_id, &sibling.id.ifname);
    for hook in Hook::ALL {
        let (from, to) = (folder.join(hook.name()), target.join(hook.name()));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).map_err(|source| Error::Pin { what: "hand over", path: from, source })?;
        }
    }
    remove_links(folder)
}

/// Removes an attachment's folder with its links.
pub(crate) fn remove_links(folder: &Path) -> Result<(), Error> {
    // Producers first: no connect() may be rewritten when nobody answers SO_ORIGINAL_DST any more.
    for hook in Hook::ALL.iter().rev() {
        remove_pin(&folder.join(hook.name()))?;
        fault::point(&format!("detach-{hook}"));
    }
    install::remove_tree(folder)?;
    Ok(())
}

/// Ends a link and removes its pin.
fn remove_pin(path: &Path) -> Result<(), Error> {
    if let Ok(link) = sys::obj_get(path) {
        // It fails for a link whose cgroup or namespace is gone: that one has ended already.
        let _ = sys::link_detach(link);
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Pin { what: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}
