//! Folders below bpffs, read and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::pins::{self, AttachmentFolder, Generation};
use crate::node::Node;
use crate::path_error::{PathError, fine_if_gone};

/// The entries of a folder; none when it is gone.
///
/// # Errors
/// It is there and cannot be read.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, PathError> {
    // An entry that cannot be read is an error: a list that ends early would say that a pod is gone.
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    match entries {
        Ok(entries) => Ok(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(PathError { what: "list", path: folder.into(), source }),
    }
}

/// The folders of all ABI versions that are on the node: this one's and those that pods of another one still
/// use.
///
/// # Errors
/// The folder is there and cannot be read.
pub(crate) fn generations(node: &Node) -> Result<Vec<Generation>, PathError> {
    Ok(list(&pins::root(node))?.into_iter().filter_map(Generation::found).collect())
}

/// The attachments' folders of a container, `pods/<container>/<ifname>`.
///
/// # Errors
/// The folder is there and cannot be read.
pub(crate) fn of_container(container: &Path) -> Result<Vec<AttachmentFolder>, PathError> {
    Ok(list(container)?.into_iter().map(AttachmentFolder::found).collect())
}

/// The attachments' folders of a generation.
///
/// # Errors
/// A folder is there and cannot be read.
pub(crate) fn attachments(generation: &Generation) -> Result<Vec<AttachmentFolder>, PathError> {
    let mut folders = Vec::new();
    for container in list(&generation.pods())? {
        folders.extend(of_container(&container)?);
    }
    Ok(folders)
}

/// The network namespaces that an attachment's folder names.
///
/// # Errors
/// The folder is there and cannot be read.
pub(crate) fn cookies(folder: &AttachmentFolder) -> Result<Vec<u64>, PathError> {
    Ok(list(folder.path())?.iter().filter_map(|path| pins::cookie_in(path)).collect())
}

/// Makes a folder and those that it is in.
///
/// # Errors
/// The file system refuses.
pub(crate) fn make(path: &Path) -> Result<(), PathError> {
    fs::create_dir_all(path).map_err(PathError::at("make", path))
}

/// Removes a folder of pins with what is in it; fine when it is not there.
///
/// # Errors
/// Something in it cannot be removed.
pub(crate) fn remove_tree(path: &Path) -> Result<(), PathError> {
    fine_if_gone(fs::remove_dir_all(path)).map_err(PathError::at("remove", path))
}
