//! A pod's links and their pins: make, take over, hand over, remove.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::attach::error::Error;
use crate::attach::plan::Planned;
use crate::attach::record::Attachment;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::object;
use crate::kernel::pins::{self, AttachmentFolder};
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::path_error::{PathError, fine_if_gone};

/// Makes the attachment's folder, with the one in it that names the pod.
pub(crate) fn make_folder(node: &Node, attachment: &Attachment) -> Result<(), PathError> {
    folders::make(&pins::current(node).attachment(&attachment.id).netns(attachment.cookie))
}

/// Puts one link in its place. It may be there already: our own from a repeated call, another interface's of
/// the same container, or, on the pod's cgroup, a leftover of the pod's previous sandbox.
pub(crate) fn link(node: &Node, planned: &Planned, hook: Hook) -> Result<(), Error> {
    let folder = pins::current(node).attachment(&planned.attachment.id);
    let pin = folder.link(hook);
    let target = if hook.on_cgroup() { planned.attachment.cgroup_id } else { inode(planned.netns.file()) };
    if let Some(own) = find_link(&folders::of_container(folder.container())?, hook, target) {
        return Ok(take_over(&own, &pin)?);
    }
    remove_pin(&pin)?;
    if let Some(leftover) = leftover(node, planned, hook)? {
        return Ok(take_over(&leftover, &pin)?);
    }
    let failed = |source| link_error(&planned.attachment, hook, source);
    let link = create_link(node, planned, hook).map_err(failed)?;
    sys::obj_pin(link.as_fd(), &pin).map_err(failed)
}

/// The link of another container to this very cgroup. The kernel links a program to a cgroup as often as it
/// is asked (seen on Linux 6.18), and one that runs twice takes its own rewriting of a destination for what
/// the application dialled, so the cgroup is asked first; only where it runs the program already are the pins
/// searched for the link.
fn leftover(node: &Node, planned: &Planned, hook: Hook) -> Result<Option<PathBuf>, Error> {
    if !hook.on_cgroup() {
        return Ok(None);
    }
    let failed = |source| link_error(&planned.attachment, hook, source);
    let pins = pins::current(node);
    let program = sys::obj_get(&pins.program(hook)).and_then(sys::program_id).map_err(failed)?;
    let (attached, _) = sys::cgroup_programs(&planned.cgroup, hook).map_err(failed)?;
    if !attached.contains(&program) {
        return Ok(None);
    }
    Ok(find_link(&folders::attachments(&pins)?, hook, planned.attachment.cgroup_id))
}

fn create_link(node: &Node, planned: &Planned, hook: Hook) -> Result<OwnedFd, SyscallError> {
    if hook.on_cgroup() {
        sys::link_create(sys::obj_get(&pins::current(node).program(hook))?, &planned.cgroup, hook)
    } else {
        sys::link_create(object::load_entry(node, planned.attachment.cookie)?, planned.netns.file(), hook)
    }
}

fn link_error(attachment: &Attachment, hook: Hook, source: SyscallError) -> Error {
    let target = if hook.on_cgroup() { attachment.cgroup.clone() } else { attachment.netns.clone() };
    Error::Link { hook, target, source }
}

/// Files an existing link under this attachment; the program never stops running.
fn take_over(from: &Path, to: &Path) -> Result<(), PathError> {
    if from == to {
        return Ok(());
    }
    fs::rename(from, to).map_err(PathError::at("take over", from))
}

fn inode(file: &fs::File) -> u64 {
    file.metadata().map(|metadata| metadata.ino()).unwrap_or(0)
}

/// A pinned link of this hook on this very target in one of the folders.
fn find_link(folders: &[AttachmentFolder], hook: Hook, target: u64) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.link(hook))
        .find(|pin| sys::obj_get(pin).and_then(sys::link_info).is_ok_and(|info| info.target == target))
}

/// Moves the links to another interface's folder.
pub(crate) fn hand_over(
    node: &Node,
    folder: &AttachmentFolder,
    sibling: &Attachment,
) -> Result<(), PathError> {
    make_folder(node, sibling)?;
    let target = pins::current(node).attachment(&sibling.id);
    for hook in Hook::ALL.iter().copied() {
        let (from, to) = (folder.link(hook), target.link(hook));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).map_err(PathError::at("hand over", from))?;
        }
    }
    remove_links(folder)
}

/// Removes an attachment's folder with its links.
pub(crate) fn remove_links(folder: &AttachmentFolder) -> Result<(), PathError> {
    // Producers first: no connect() may be rewritten when nothing answers SO_ORIGINAL_DST any more.
    for hook in Hook::ALL.iter().rev().copied() {
        remove_pin(&folder.link(hook))?;
        fault::point(&format!("detach-{hook}"));
    }
    folders::remove_tree(folder.path())
}

/// Ends a link and removes its pin.
fn remove_pin(path: &Path) -> Result<(), PathError> {
    if let Ok(link) = sys::obj_get(path) {
        // It fails for a link whose cgroup or namespace is gone: that one has ended already.
        let _ = sys::link_detach(link);
    }
    fine_if_gone(fs::remove_file(path)).map_err(PathError::at("remove", path))
}
