//! A pod's links and their pins: make, share, bring up to date, end.
//!
//! A link may have several owners: the interfaces of one container, or two sandboxes of one pod, which have
//! the cgroup in common. Each owner has a name for the link in its own folder, a hard link to the first one's
//! pin. So the file system counts the owners, and the last one ends the link.

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
use crate::kernel::pins::{self, AttachmentFolder, Generation};
use crate::kernel::sys::{self, LinkInfo, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::path_error::{PathError, fine_if_gone, is_not_found};

/// Makes the attachment's folder, with the one in it that names the pod.
pub(crate) fn make_folder(node: &Node, attachment: &Attachment) -> Result<(), PathError> {
    folders::make(&pins::current(node).attachment(&attachment.id).netns(attachment.cookie))
}

/// Puts one link in its place, with the installed program. The pod's cgroup or namespace may have it already:
/// from a repeated call, another interface, the pod's previous sandbox, an earlier version, or an
/// installation whose pins are lost. Then it is shared, without a moment in which the pod has none.
///
/// Where there is none, `begins` is called before one is made: what the program has left in maps when it ran
/// there may be wrong by now.
pub(crate) fn link(
    node: &Node,
    planned: &Planned,
    hook: Hook,
    begins: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let place = Place::new(node, planned, hook);
    let pin = place.folder.link(hook);
    let found = place.find().map_err(|source| place.error(source))?;
    let Some(found) = found else {
        remove_pin(&pin)?;
        begins()?;
        let link = place.create().map_err(|source| place.error(source))?;
        return sys::obj_pin(link.as_fd(), &pin).map_err(|source| place.error(source));
    };
    place.file(&found, &pin)?;
    place.refresh(&found).map_err(|source| place.error(source))?;
    place.end_others(&found, &pin)
}

/// Gives up the link of a hook that the attachment's policy does not need. Another attachment that has it,
/// too, keeps it; one that has lost its pins ends. Whether the hook has ended by that.
pub(crate) fn give_up(node: &Node, planned: &Planned, hook: Hook) -> Result<bool, Error> {
    let place = Place::new(node, planned, hook);
    let pin = place.folder.link(hook);
    let had = owners(&pin)? > 0;
    remove_pin(&pin)?;
    let failed = |source| place.error(source);
    let Some(found) = place.find().map_err(failed)? else { return Ok(had) };
    if found.pin.is_some() {
        return Ok(false);
    }
    for link in place.unpinned().map_err(failed)? {
        sys::link_detach(&link.fd).map_err(failed)?;
    }
    Ok(true)
}

/// Where one hook of one pod is linked.
struct Place<'a> {
    node: &'a Node,
    planned: &'a Planned,
    hook: Hook,
    pins: Generation,
    folder: AttachmentFolder,
    /// The cgroup's id or the namespace's inode.
    target: u64,
}

/// A link that is there already.
struct Found {
    fd: OwnedFd,
    info: LinkInfo,
    /// One of its names; none when all its pins are lost.
    pin: Option<PathBuf>,
}

impl<'a> Place<'a> {
    fn new(node: &'a Node, planned: &'a Planned, hook: Hook) -> Place<'a> {
        let attachment = &planned.attachment;
        let pins = pins::current(node);
        let folder = pins.attachment(&attachment.id);
        let target = if hook.on_cgroup() { attachment.cgroup_id } else { inode(planned.netns.file()) };
        Place { node, planned, hook, pins, folder, target }
    }

    fn error(&self, source: SyscallError) -> Error {
        let attachment = &self.planned.attachment;
        let target = if self.hook.on_cgroup() { &attachment.cgroup } else { &attachment.netns };
        Error::Link { hook: self.hook, target: target.clone(), source }
    }

    /// The kernel links a program to a cgroup as often as it is asked (seen on Linux 6.18), and one that runs
    /// twice takes its own rewriting of a destination for what the application dialled. So the kernel is
    /// asked first; only where it runs a program of ours already are the pins, and then all links, searched
    /// for it.
    fn find(&self) -> Result<Option<Found>, SyscallError> {
        if self.running()? == 0 {
            return Ok(None);
        }
        let own = folders::of_container(self.folder.container()).unwrap_or_default();
        if let Some(found) = self.pinned_in(&own) {
            return Ok(Some(found));
        }
        for generation in folders::generations(self.node).unwrap_or_default() {
            let all = folders::attachments(&generation).unwrap_or_default();
            if let Some(found) = self.pinned_in(&all) {
                return Ok(Some(found));
            }
        }
        Ok(self.unpinned()?.into_iter().next())
    }

    /// How many programs of ours run at this hook of the target itself.
    fn running(&self) -> Result<usize, SyscallError> {
        let (programs, _) = if self.hook.on_cgroup() {
            sys::programs_on(&self.planned.cgroup, self.hook)?
        } else {
            sys::programs_on(self.planned.netns.file(), self.hook)?
        };
        Ok(programs.into_iter().filter(|id| object::is_ours(*id, self.hook)).count())
    }

    fn pinned_in(&self, folders: &[AttachmentFolder]) -> Option<Found> {
        folders.iter().find_map(|folder| {
            let pin = folder.link(self.hook);
            let fd = sys::obj_get(&pin).ok()?;
            let info = sys::link_info(&fd).ok()?;
            (info.target == self.target).then_some(Found { fd, info, pin: Some(pin) })
        })
    }

    /// All links of the kernel at this hook of this target that run a program of ours.
    fn unpinned(&self) -> Result<Vec<Found>, SyscallError> {
        let mut found = Vec::new();
        for id in sys::link_ids()? {
            // One that ends meanwhile is none.
            let Ok(fd) = sys::link_by_id(id) else { continue };
            let Ok(info) = sys::link_info(&fd) else { continue };
            if info.target == self.target && object::is_ours(info.program_id, self.hook) {
                found.push(Found { fd, info, pin: None });
            }
        }
        Ok(found)
    }

    /// Gives the link a name in the attachment's own folder.
    fn file(&self, found: &Found, pin: &Path) -> Result<(), Error> {
        match &found.pin {
            Some(from) if from == pin => Ok(()),
            Some(from) => {
                remove_pin(pin)?;
                Ok(fs::hard_link(from, pin).map_err(PathError::at("share", from))?)
            }
            // The folder could not be read, and the name is there: to remove it would end the link.
            None if names(pin, &found.info) => Ok(()),
            None => {
                remove_pin(pin)?;
                sys::obj_pin(found.fd.as_fd(), pin).map_err(|source| self.error(source))
            }
        }
    }

    fn create(&self) -> Result<OwnedFd, SyscallError> {
        if self.hook.on_cgroup() {
            sys::link_create(sys::obj_get(&self.pins.program(self.hook))?, &self.planned.cgroup, self.hook)
        } else {
            let entry = object::load_stub(self.node, self.planned.attachment.cookie)?;
            sys::link_create(entry, self.planned.netns.file(), self.hook)
        }
    }

    /// Brings the link to the installed program.
    fn refresh(&self, found: &Found) -> Result<(), SyscallError> {
        replace_program(self.node, self.hook, &found.fd, self.planned.attachment.cookie).map(drop)
    }

    /// Ends what runs beside the link that is kept: two generations of a hook on one pod. Their names become
    /// names of the one that is kept.
    fn end_others(&self, kept: &Found, pin: &Path) -> Result<(), Error> {
        let failed = |source| self.error(source);
        if self.running().map_err(failed)? < 2 {
            return Ok(());
        }
        for other in self.unpinned().map_err(failed)?.iter().filter(|other| other.info.id != kept.info.id) {
            for generation in folders::generations(self.node)? {
                for folder in folders::attachments(&generation)? {
                    let name = folder.link(self.hook);
                    if sys::obj_get(&name).and_then(sys::link_info).is_ok_and(|info| info.id == other.info.id)
                    {
                        fs::remove_file(&name).map_err(PathError::at("remove", &name))?;
                        fs::hard_link(pin, &name).map_err(PathError::at("share", pin))?;
                    }
                }
            }
            sys::link_detach(&other.fd).map_err(failed)?;
        }
        Ok(())
    }
}

/// Brings a link to the installed program of its hook, by compare-and-swap; false when it runs that already.
///
/// # Errors
/// `BPF_LINK_UPDATE`: ENOLINK when the cgroup or the namespace is gone.
pub(crate) fn replace_program(
    node: &Node,
    hook: Hook,
    link: &OwnedFd,
    cookie: u64,
) -> Result<bool, SyscallError> {
    let old = sys::program_by_id(sys::link_info(link)?.program_id)?;
    let new = if hook.on_cgroup() {
        let new = sys::obj_get(&pins::current(node).program(hook))?;
        if sys::program_id(&new)? == sys::program_id(&old)? {
            return Ok(false);
        }
        new
    } else {
        if object::leads_here(node, &old)? {
            return Ok(false);
        }
        object::load_stub(node, cookie)?
    };
    sys::link_update(link, new, old).map(|()| true)
}

/// Whether a pin is this link's.
fn names(pin: &Path, link: &LinkInfo) -> bool {
    sys::obj_get(pin).and_then(sys::link_info).is_ok_and(|info| info.id == link.id)
}

fn inode(file: &fs::File) -> u64 {
    file.metadata().map(|metadata| metadata.ino()).unwrap_or(0)
}

/// How many attachments have this link; 0 when there is no such pin.
///
/// # Errors
/// The pin cannot be looked at.
pub(crate) fn owners(pin: &Path) -> Result<u64, PathError> {
    match fs::symlink_metadata(pin) {
        Ok(metadata) => Ok(metadata.nlink()),
        Err(error) if is_not_found(&error) => Ok(0),
        Err(source) => Err(PathError { what: "look at", path: pin.into(), source }),
    }
}

/// Whether the kernel says that the pod's network namespace is no more: the link to it has lost its target.
pub(crate) fn namespace_gone(folder: &AttachmentFolder) -> bool {
    sys::obj_get(&folder.link(Hook::Inbound)).and_then(sys::link_info).is_ok_and(|info| info.target == 0)
}

/// Removes an attachment's folder with its names of links.
pub(crate) fn remove_links(folder: &AttachmentFolder) -> Result<(), PathError> {
    remove_pins(folder)?;
    folders::remove_tree(folder.path())
}

/// Removes an attachment's names of links; the folder stays, and with it the name of the pod.
pub(crate) fn remove_pins(folder: &AttachmentFolder) -> Result<(), PathError> {
    // Producers first: no connect() may be rewritten when nothing answers SO_ORIGINAL_DST any more.
    for hook in Hook::ALL.iter().rev().copied() {
        remove_pin(&folder.link(hook))?;
        fault::point(&format!("detach-{hook}"));
    }
    Ok(())
}

/// Removes one name of a link; with the last one the link ends.
fn remove_pin(path: &Path) -> Result<(), PathError> {
    match owners(path)? {
        0 => return Ok(()),
        1 => {
            if let Ok(link) = sys::obj_get(path) {
                // It fails for a link whose cgroup or namespace is gone: that one has ended already.
                let _ = sys::link_detach(link);
            }
        }
        _ => {}
    }
    fine_if_gone(fs::remove_file(path)).map_err(PathError::at("remove", path))
}
