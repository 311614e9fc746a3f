//! The record of an attachment, one JSON file each: what was asked for and what was done, so that DEL can
//! undo exactly that, CHECK can compare, and an operator can read it.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{AttachmentId, PodRef};
use crate::kernel::folders;
use crate::node::lock::NodeLock;
use crate::node::{Node, names, private};
use crate::path_error::{PathError, fine_if_gone};
use crate::pod::netns::{DnsChanges, LocalRoute};
use crate::pod::routes::PrefixVerdict;
use crate::policy::Policy;

/// What attach changed in the pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetnsChanges {
    /// `::6/128` was added to `lo`.
    pub passthrough6: bool,
    /// The local routes to the sidecar that were added.
    #[serde(default)]
    pub local_routes: Vec<LocalRoute>,
    /// Where DNS is captured: what was added for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsChanges>,
}

/// What the record keeps of a pod's guard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardRecord {
    /// The entry in GUARD, which is the filters' `classid`; 0 until there is one.
    pub index: u32,
    /// Where the filters stand.
    pub interfaces: Vec<GuardedInterface>,
}

/// An interface with the guard's filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardedInterface {
    /// Its index in the pod.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It had no `clsact` qdisc before: ours goes with us, unless another user has put a filter there.
    pub made_qdisc: bool,
}

/// An attachment as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Container and interface.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The pod, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The CNI network: GC is called with the attachments of one network only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The pod-level cgroup.
    pub cgroup: PathBuf,
    /// Its id (the inode of its directory).
    pub cgroup_id: u64,
    /// The network namespace.
    pub netns: PathBuf,
    /// Its cookie, the key of the pod's entries in the maps.
    pub cookie: u64,
    /// The boot during which the ids above mean something.
    pub boot_id: String,
    /// What is captured.
    pub policy: Policy,
    /// The pod's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Indices of the interfaces that the policy excludes.
    #[serde(default)]
    pub excluded_interfaces: Vec<u32>,
    /// Where connections leave by excluded interfaces.
    #[serde(default)]
    pub interface_routes: Vec<PrefixVerdict>,
    /// `excludeInterfaces` names `lo`.
    #[serde(default)]
    pub lo_excluded: bool,
    /// The proxy's uid in the initial user namespace.
    pub host_uid: u32,
    /// The proxy's gid in the initial user namespace.
    pub host_gid: u32,
    /// The owner groups' gids in the initial user namespace.
    #[serde(default)]
    pub host_groups: std::collections::BTreeSet<u32>,
    /// Where the guard stands.
    #[serde(default)]
    pub guard: GuardRecord,
    /// First and last port that the namespace gave to outgoing connections when the pod was attached. A
    /// record of an older version has none: no port counts as ephemeral then.
    #[serde(default)]
    pub ephemeral_ports: (u16, u16),
    /// What was added to the namespace.
    pub changes: NetnsChanges,
    /// The runtime's GC no longer lists it, but processes run in its cgroup: it goes when they do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphaned: bool,
    /// The directories of its cgroup that ADD made, the outer ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_cgroups: Vec<PathBuf>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The record cannot be put into words.
    #[error("cannot write {path} as JSON: {source}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Attachment {
    /// Writes the file: whole or not at all, also when the machine loses its power meanwhile.
    ///
    /// # Errors
    /// The state directory is not writable.
    pub(crate) fn store(&self, node: &Node) -> Result<(), Error> {
        let path = node.attachment(&self.id);
        // Two calls for the same attachment may write at once.
        let unfinished = path.with_extension(format!("{}.new", std::process::id()));
        let text = serde_json::to_vec(self).map_err(|source| Error::Decode { path: path.clone(), source })?;
        private::make_dir(&node.attachments())?;
        let write = || {
            let mut file = private::open(fs::OpenOptions::new().write(true).truncate(true), &unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            fs::File::open(node.attachments())?.sync_all()
        };
        Ok(write().map_err(PathError::at("write", &path))?)
    }

    /// Removes the file; fine when it is gone.
    ///
    /// # Errors
    /// The state directory is not writable.
    pub(crate) fn forget(&self, node: &Node) -> Result<(), Error> {
        let path = node.attachment(&self.id);
        Ok(fine_if_gone(fs::remove_file(&path)).map_err(PathError::at("remove", path))?)
    }

    /// Whether the ids in it belong to this boot. Yes, where the boot cannot be asked for: to remove a living
    /// pod's redirection because of that lets its traffic past the sidecar.
    #[must_use]
    pub fn of_this_boot(&self) -> bool {
        boot_id().map_or(true, |id| id == self.boot_id)
    }
}

/// All attachments of the node, in the order of their names. A record that cannot be understood hides no
/// other: [`unreadable`] names it, and its pod counts as one without a record.
///
/// # Errors
/// The folder or a file in it may not be read.
pub fn all(node: &Node) -> Result<Vec<Attachment>, Error> {
    Ok(read_all(node, None)?.into_iter().filter_map(Result::ok).collect())
}

/// One attachment; `None` when it has no record that can be understood.
///
/// # Errors
/// As [`all`].
pub fn of(node: &Node, id: &AttachmentId) -> Result<Option<Attachment>, Error> {
    Ok(read(&node.attachment(id))?.and_then(Result::ok))
}

/// The attachments of a container.
///
/// # Errors
/// As [`all`].
pub fn of_container(node: &Node, container_id: &str) -> Result<Vec<Attachment>, Error> {
    Ok(read_all(node, Some(container_id))?.into_iter().filter_map(Result::ok).collect())
}

/// Whether a container has a record, one that cannot be understood included.
///
/// # Errors
/// As [`all`].
pub(crate) fn exists(node: &Node, container_id: &str) -> Result<bool, Error> {
    Ok(!read_all(node, Some(container_id))?.is_empty())
}

/// The records that cannot be understood: empty, cut off, or of a version with other fields.
///
/// # Errors
/// As [`all`].
pub fn unreadable(node: &Node) -> Result<Vec<Unreadable>, Error> {
    Ok(read_all(node, None)?.into_iter().filter_map(Result::err).collect())
}

/// Puts records that cannot be understood where they stop nothing and can still be looked at.
///
/// # Errors
/// The state directory is not writable.
pub(crate) fn set_aside(node: &Node, _lock: &NodeLock, container_id: Option<&str>) -> Result<(), Error> {
    let unreadable = read_all(node, container_id)?.into_iter().filter_map(Result::err);
    for record in unreadable.filter(|record| record.is_content) {
        let aside = node.set_aside().join(record.path.file_name().unwrap_or_default());
        private::make_dir(&node.set_aside())?;
        fs::rename(&record.path, &aside).map_err(PathError::at("set aside", &record.path))?;
        tracing::warn!(record = %record, aside = %aside.display(), "set a record aside");
    }
    Ok(())
}

/// Removes what calls that died while they wrote have left.
pub(crate) fn remove_unfinished(node: &Node, _lock: &NodeLock) {
    for path in fs::read_dir(node.attachments()).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pid = name.strip_suffix(".new").and_then(|name| name.rsplit_once('.')).map(|(_, pid)| pid);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A record that cannot be understood.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// It was read and is no record, or is no file; otherwise it could not be read this time.
    is_content: bool,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cannot be read as a record: {}", self.path.display(), self.problem)
    }
}

fn read_all(node: &Node, container_id: Option<&str>) -> Result<Vec<Result<Attachment, Unreadable>>, Error> {
    let prefix = container_id.map(|id| format!("{}.", names::encode(id))).unwrap_or_default();
    let is_wanted = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            && path.extension().is_some_and(|extension| extension == "json")
    };
    let mut paths: Vec<_> = folders::list(&node.attachments())?.into_iter().filter(is_wanted).collect();
    paths.sort();
    paths.iter().filter_map(|path| read(path).transpose()).collect()
}

/// Reads one; `None` when it was removed meanwhile.
fn read(path: &Path) -> Result<Option<Result<Attachment, Unreadable>>, Error> {
    let (problem, is_content) = match fs::read(path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(attachment) => return Ok(Some(Ok(attachment))),
            Err(error) => (error.to_string(), true),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Err(PathError { what: "read", path: path.into(), source }.into());
        }
        Err(error) => (error.to_string(), error.kind() == io::ErrorKind::IsADirectory),
    };
    Ok(Some(Err(Unreadable { path: path.into(), problem, is_content })))
}

/// The id of this boot.
///
/// # Errors
/// /proc is not mounted.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
