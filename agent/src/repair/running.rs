//! Attaching a pod that runs: where its cgroup, its namespace and its sandbox are, seen from the node.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use redirect_user::attach::record::Attachment;
use redirect_user::attach::{self, Request};
use redirect_user::ids::AttachmentId;
use redirect_user::inspect;
use redirect_user::node::Node;
use redirect_user::node::lock::{self, NodeLock};
use redirect_user::pod::cgroup::{self, Clues};
use redirect_user::policy::Policy;
use thiserror::Error;

use crate::pod::Pod;

/// Where runtimes keep the namespaces of sandboxes.
const NETNS_DIRS: [&str; 3] = ["/var/run/netns", "/run/netns", "/var/run/docker/netns"];

/// Why a running pod could not be attached.
#[derive(Debug, Error)]
pub enum Error {
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// It has ended.
    #[error("no process of the pod is in {}", .0.display())]
    NoProcess(PathBuf),
    /// It shares the node's namespace.
    #[error("process {0} of the pod is in the node's own network namespace")]
    HostNetns(i32),
    /// Another call holds the lock, or it cannot be taken.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The library could not.
    #[error(transparent)]
    Attach(#[from] attach::Error),
}

/// Whether a process of the pod is alive on this node.
#[must_use]
pub fn has_processes(pod: &Pod) -> bool {
    let clues = Clues { uid: pod.runtime_uid(), ..Clues::default() };
    let found = cgroup::find(clues).ok().and_then(|cgroup| cgroup::pids(&cgroup.path).ok());
    found.is_some_and(|processes| !processes.is_empty())
}

/// Attaches it, or attaches it again with this policy; returns the attachment, and how many listeners of the
/// sidecar are known then. None where the plugin has added or deleted it meanwhile: `was` is what was there
/// when somebody looked, without the lock.
///
/// # Errors
/// See [`Error`]. A pod that was attached stays attached.
pub fn attach(
    node: &Node,
    pod: &Pod,
    policy: Policy,
    was: Option<Attachment>,
) -> Result<Option<(Attachment, usize)>, Error> {
    let lock = NodeLock::acquire(node)?;
    if is_outdated(node, pod, was.as_ref())? {
        return Ok(None);
    }
    let request = match &was {
        Some(was) if was_alive(was) => again(was, policy),
        _ => afresh(pod, policy, was.map(|was| was.id))?,
    };
    Ok(Some(attach::attach_running(node, &lock, &request)?))
}

/// Whether what was seen of the pod is no longer so. To be asked with the lock held.
fn is_outdated(node: &Node, pod: &Pod, was: Option<&Attachment>) -> Result<bool, Error> {
    let uid = pod.reference().uid;
    let attachments = inspect::list(node)?;
    let mut of_pod = attachments
        .iter()
        .filter(|one| one.of_this_boot() && one.pod.as_ref().is_some_and(|known| known.uid == uid));
    Ok(match was {
        None => of_pod.next().is_some(),
        Some(was) => !of_pod.any(|one| one.id == was.id),
    })
}

fn was_alive(was: &Attachment) -> bool {
    let same_cgroup = fs::metadata(&was.cgroup).is_ok_and(|cgroup| cgroup.ino() == was.cgroup_id);
    same_cgroup && was.netns.exists()
}

fn again(was: &Attachment, policy: Policy) -> Request {
    Request {
        id: was.id.clone(),
        cgroup: was.cgroup.clone(),
        netns: was.netns.clone(),
        policy,
        pod: was.pod.clone(),
        network: was.network.clone(),
        addresses: was.addresses.clone(),
        made_cgroups: was.made_cgroups.clone(),
    }
}

fn afresh(pod: &Pod, policy: Policy, id: Option<AttachmentId>) -> Result<Request, Error> {
    let reference = pod.reference();
    let clues = Clues { uid: reference.uid.as_deref(), ..Clues::default() };
    let cgroup = cgroup::find(clues)?.path;
    let mut alive = cgroup::pids(&cgroup).unwrap_or_default();
    // A process that this process cannot see has the number 0.
    alive.retain(|pid| *pid > 0);
    alive.sort_unstable();
    let process = *alive.first().ok_or_else(|| Error::NoProcess(cgroup.clone()))?;
    let netns = netns_of(process)?;
    let id =
        id.unwrap_or_else(|| AttachmentId { container_id: sandbox(&cgroup, pod), ifname: "eth0".to_owned() });
    let addresses = pod.addresses();
    Ok(Request {
        id,
        cgroup,
        netns,
        policy,
        pod: Some(reference),
        network: None,
        addresses,
        made_cgroups: Vec::new(),
    })
}

/// The path under which the runtime keeps the namespace of a process, which outlives the process; else the
/// process's.
fn netns_of(process: i32) -> Result<PathBuf, Error> {
    let of_process = PathBuf::from(format!("/proc/{process}/ns/net"));
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let wanted = identity(&of_process);
    if wanted.is_none() || wanted == identity(Path::new("/proc/self/ns/net")) {
        return Err(Error::HostNetns(process));
    }
    let kept = NETNS_DIRS.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let kept = kept.map(|entry| entry.path()).find(|path| identity(path) == wanted);
    Ok(kept.unwrap_or(of_process))
}

/// The sandbox's id, by which the runtime will call DEL: the container in the pod's cgroup that the API does
/// not know. Where there is no such container (CRI-O drops it) the pod's own id takes its place, and `gc`
/// ends the attachment.
fn sandbox(cgroup: &Path, pod: &Pod) -> String {
    let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let known: HashSet<&str> = statuses.filter_map(|status| status.container_id.rsplit('/').next()).collect();
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut unknown: Vec<String> =
        names.filter_map(|name| container_id(&name)).filter(|id| !known.contains(id.as_str())).collect();
    match (unknown.len(), unknown.pop()) {
        (1, Some(id)) => id,
        _ => format!("pod-{}", pod.runtime_uid().unwrap_or(pod.name())),
    }
}

/// The id in a container's cgroup: `<id>`, `cri-containerd-<id>.scope`, `crio-<id>.scope`.
fn container_id(name: &str) -> Option<String> {
    let id = name.strip_suffix(".scope").unwrap_or(name);
    let id = id.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_the_names_of_their_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        for name in [id.clone(), format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")] {
            assert_eq!(container_id(&name), Some(id.clone()), "{name}");
        }
        assert_eq!(container_id("init.scope"), None);
    }
}
