//! Replaces the programs of a running node in place: pods keep their links, maps and connections, and there
//! is no moment without redirection. (A version with another map layout has another ABI version and its own
//! pins.)
//!
//! First the programs that future attachments use are exchanged, then every pod's links are brought to them,
//! who takes a connection's origin before who makes one, each by compare-and-swap. Interrupted anywhere, the
//! repeated call goes on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::attach;
use crate::attach::record::{self, Attachment};
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::object;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::node::lock::NodeLock;
use crate::path_error::PathError;

/// Why an upgrade stopped. What was replaced stays replaced; the repeated call goes on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// Nothing to upgrade.
    #[error("redirect-cni is not installed below {path}; `redirect install` does that")]
    NotInstalled {
        /// Where it would be.
        path: PathBuf,
    },
    /// The new programs could not be loaded or pinned.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// Attachments could not be read.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// A folder of pins could not be changed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Old and new programs could not change places.
    #[error("cannot exchange {path} with the new programs: {source}")]
    Exchange {
        /// The folder of the old ones.
        path: PathBuf,
        source: io::Error,
    },
    /// A link could not be brought to the new program.
    #[error("cannot replace {hook} of container {container}: {source}; run `redirect upgrade` again")]
    Replace {
        /// The hook.
        hook: Hook,
        /// The pod.
        container: String,
        source: SyscallError,
    },
}

/// Brings the node to the programs of this binary; returns how many links were replaced.
///
/// # Errors
/// See [`Error`].
pub fn upgrade(node: &Node, lock: &NodeLock) -> Result<usize, Error> {
    let pins = pins::current(node);
    if !install::installed(node) {
        return Err(Error::NotInstalled { path: pins.folder().into() });
    }
    let new = pins.replacement();
    folders::remove_tree(&new)?;
    install::prepare_programs(node, lock, &new)?;
    fault::point("upgrade-exchange");
    exchange(&pins.programs(), &new)?;
    install::lead_to_inbound(&pins.map("INBOUND"), &pins.programs())?;
    fault::point("upgrade-links");
    let mut replaced = 0;
    for attachment in record::all(node)? {
        for hook in Hook::needed(&attachment.policy) {
            replaced += usize::from(replace(node, &attachment, hook)?);
        }
    }
    folders::remove_tree(&new)?;
    Ok(replaced)
}

/// Two folders change places in one step (bpffs knows RENAME_EXCHANGE since Linux 5.17).
fn exchange(old: &Path, new: &Path) -> Result<(), Error> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, old, AT_FDCWD, new, RenameFlags::RENAME_EXCHANGE)
        .map_err(|source| Error::Exchange { path: old.into(), source: source.into() })
}

/// Replaces one link's program if it is not the installed one; false when there was nothing to do.
fn replace(node: &Node, attachment: &Attachment, hook: Hook) -> Result<bool, Error> {
    let pin = pins::current(node).attachment(&attachment.id).link(hook);
    if fs::symlink_metadata(&pin).is_err() {
        // Another interface of the same container holds the links.
        return Ok(false);
    }
    swap(node, attachment, hook, &pin).or_else(|source| match source.errno() {
        // The cgroup or the namespace is gone: the pod is being deleted.
        Some(libc::ENOLINK) => Ok(false),
        _ => Err(Error::Replace { hook, container: attachment.id.container_id.clone(), source }),
    })
}

fn swap(node: &Node, attachment: &Attachment, hook: Hook, pin: &Path) -> Result<bool, SyscallError> {
    let link = sys::obj_get(pin)?;
    let old = sys::program_by_id(sys::link_info(&link)?.program_id)?;
    let new = if hook.on_cgroup() {
        let new = sys::obj_get(&pins::current(node).program(hook))?;
        if sys::program_id(&new)? == sys::program_id(&old)? {
            return Ok(false);
        }
        new
    } else {
        object::load_entry(node, attachment.cookie)?
    };
    sys::link_update(link, new, old).map(|()| true)
}
