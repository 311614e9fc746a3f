//! The record of an attachment, one JSON file each: what was asked for and what was done, so that DEL can
//! undo exactly that, CHECK can compare, and an operator can read it.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{AttachmentId, PodRef};
use crate::node::{Node, names};
use crate::path_error::{PathError, fine_if_gone};
use crate::pod::netns::LocalRoute;
use crate::pod::routes::PrefixVerdict;
use crate::policy::Policy;

/// What attach changed in the pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetnsChanges {
    /// `::6/128` was added to `lo`.
    pub passthrough6: bool,
    /// MPTCP was switched off: its subflows, not its socket, would meet the sidecar, which then could not
    /// learn the destination. Programs that ask for MPTCP are told that there is none and use TCP.
    #[serde(default)]
    pub mptcp_disabled: bool,
    /// The local routes to the sidecar that were added.
    #[serde(default)]
    pub local_routes: Vec<LocalRoute>,
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
    /// What was added to the namespace.
    pub changes: NetnsChanges,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The content is not what was written.
    #[error("{path} is not an attachment: {source}; remove it and run `redirect gc`")]
    Decode { path: PathBuf, source: serde_json::Error },
}

impl Attachment {
    /// Writes the file: whole or not at all.
    ///
    /// # Errors
    /// The state directory is not writable.
    pub(crate) fn store(&self, node: &Node) -> Result<(), Error> {
        let path = node.attachment(&self.id);
        let unfinished = path.with_extension("new");
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Decode { path: path.clone(), source })?;
        let write = || {
            fs::create_dir_all(node.attachments())?;
            let mut file = fs::File::create(&unfinished)?;
            file.write_all(&text)?;
            fs::rename(&unfinished, &path)
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

    /// Whether the ids in it belong to this boot.
    #[must_use]
    pub fn of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
    }
}

/// All attachments of the node, in the order of their names.
///
/// # Errors
/// A file cannot be read or is not an attachment.
pub fn all(node: &Node) -> Result<Vec<Attachment>, Error> {
    let folder = node.attachments();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(PathError { what: "list", path: folder, source }.into()),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().filter_map(|path| read(path).transpose()).collect()
}

/// The attachments of a container.
///
/// # Errors
/// As [`all`], for this container's files only: another's broken file does not keep a pod from being deleted.
pub fn of_container(node: &Node, container_id: &str) -> Result<Vec<Attachment>, Error> {
    let prefix = format!("{}.", names::encode(container_id));
    let Ok(entries) = fs::read_dir(node.attachments()) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| read(path).transpose()).collect()
}

/// Reads one; `None` when it was removed meanwhile.
fn read(path: &Path) -> Result<Option<Attachment>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PathError { what: "read", path: path.into(), source }.into()),
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| Error::Decode { path: path.into(), source })
}

/// The id of this boot.
///
/// # Errors
/// /proc is not mounted.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
