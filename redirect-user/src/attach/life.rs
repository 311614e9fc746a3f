//! Whether an attached pod is still there, and whether it runs: the kernel's own answers, not paths.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::attach::links;
use crate::attach::record::Attachment;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::pins::AttachmentFolder;
use crate::kernel::sys;
use crate::node::Node;
use crate::pod::cgroup::{self, Life};

/// What is known about the attached pod. A pod whose cgroup is gone has no process; that it cannot be looked
/// at, says nothing.
#[must_use]
pub fn of(node: &Node, attachment: &Attachment) -> Life {
    if !attachment.of_this_boot() {
        return Life::Gone;
    }
    match cgroup::life(&attachment.cgroup, attachment.cgroup_id) {
        Life::Unknown if links_are_defunct(node, attachment) => Life::Gone,
        known => known,
    }
}

/// Whether the pod may have processes that its redirection holds: that it cannot be looked at, counts as yes.
#[must_use]
pub fn runs(node: &Node, attachment: &Attachment) -> bool {
    match of(node, attachment) {
        Life::Gone | Life::Empty => false,
        Life::Unknown => true,
        // The pod's next sandbox shares the cgroup: its processes are in another network namespace.
        Life::Populated => !is_shared(node, attachment) || has_process_in_namespace(attachment),
    }
}

/// Every link to the cgroup is pinned, and none has a cgroup any more.
fn links_are_defunct(node: &Node, attachment: &Attachment) -> bool {
    let mut targets = Vec::new();
    for folder in folders_of(node, attachment) {
        for hook in Hook::ALL.iter().filter(|hook| hook.on_cgroup()) {
            targets
                .extend(sys::obj_get(&folder.link(*hook)).and_then(sys::link_info).map(|info| info.target));
        }
    }
    !targets.is_empty() && targets.iter().all(|target| *target == 0)
}

/// Whether another attachment has the cgroup's links, too.
fn is_shared(node: &Node, attachment: &Attachment) -> bool {
    folders_of(node, attachment).iter().any(|folder| links::owners(&folder.link(Hook::Connect4)) > 1)
}

/// The attachment's folder in every version.
pub(crate) fn folders_of(node: &Node, attachment: &Attachment) -> Vec<AttachmentFolder> {
    let generations = folders::generations(node).unwrap_or_default();
    generations.iter().map(|generation| generation.attachment(&attachment.id)).collect()
}

/// Whether a process of the cgroup is in the attachment's namespace; true where that cannot be seen.
fn has_process_in_namespace(attachment: &Attachment) -> bool {
    let Ok(namespace) = fs::metadata(&attachment.netns).map(|file| file.ino()) else { return true };
    let Ok(pids) = cgroup::pids(&attachment.cgroup) else { return true };
    let inside = |pid: i32| match fs::metadata(format!("/proc/{pid}/ns/net")) {
        Ok(file) => file.ino() == namespace,
        // It ended meanwhile; 0 is a process of another pid namespace.
        Err(error) => pid == 0 || error.kind() != std::io::ErrorKind::NotFound,
    };
    pids.into_iter().any(inside)
}
