//! Whether an attached pod is still there, and whether it runs: the kernel's own answers, not paths.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::attach::links;
use crate::attach::record::Attachment;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::pins::AttachmentFolder;
use crate::kernel::sys;
use crate::node::Node;
use crate::pod::cgroup::{self, Life};

/// A process that is in a pod's namespace for no longer than this is not the pod's.
const MOMENT: Duration = Duration::from_millis(200);

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
    folders_of(node, attachment)
        .iter()
        .any(|folder| links::owners(&folder.link(Hook::Connect4)).is_ok_and(|owners| owners > 1))
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

/// The attachments of which no process is in the cgroup, and some are in the namespace.
pub(crate) fn outside_cgroup(attachments: &[Attachment]) -> Vec<&Attachment> {
    let empty = attachments
        .iter()
        .filter(|attachment| cgroup::life(&attachment.cgroup, attachment.cgroup_id) == Life::Empty);
    let empty: Vec<_> = empty.filter_map(|attachment| Some((attachment, namespace(attachment)?))).collect();
    if empty.is_empty() {
        return Vec::new();
    }
    let inhabited = inhabited();
    empty.into_iter().filter(|(_, namespace)| inhabited.contains(namespace)).map(|(pod, _)| pod).collect()
}

/// Whether a process is in the attachment's namespace, as far as its path leads there.
pub(crate) fn is_inhabited(attachment: &Attachment) -> bool {
    namespace(attachment).is_some_and(|namespace| inhabited().contains(&namespace))
}

/// Device and inode of the attachment's namespace.
fn namespace(attachment: &Attachment) -> Option<(u64, u64)> {
    let file = fs::metadata(&attachment.netns).ok()?;
    Some((file.dev(), file.ino()))
}

/// The namespaces of all processes but this one.
fn inhabited() -> BTreeSet<(u64, u64)> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|entry| entry.file_name().to_str().is_some_and(|pid| pid != own));
    others
        .filter_map(|entry| fs::metadata(entry.path().join("ns/net")).ok())
        .map(|file| (file.dev(), file.ino()))
        .collect()
}

/// As [`outside_cgroup`], but for processes that are there for a moment only: a plugin of the chain that
/// works in a namespace whose pod has not begun.
pub(crate) fn outside_cgroup_for_long(attachments: &[Attachment]) -> Vec<&Attachment> {
    let first = outside_cgroup(attachments);
    if first.is_empty() {
        return first;
    }
    std::thread::sleep(MOMENT);
    let second = outside_cgroup(attachments);
    first.into_iter().filter(|pod| second.iter().any(|again| again.id == pod.id)).collect()
}
