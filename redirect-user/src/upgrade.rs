//! Replaces the programs of a running node in place: pods keep their links, maps and connections, and there
//! is no moment without redirection. Pods of a version with another map layout, which has another ABI version
//! and its own pins, are brought over by a repair.
//!
//! First the programs that future attachments use are exchanged, then every link that the kernel has is
//! brought to them, who takes a connection's origin before who makes one, each by compare-and-swap; then pods
//! get the hooks that they lack. Interrupted anywhere, the repeated call goes on.

use std::io;
use std::path::{Path, PathBuf};

use crate::attach::{self, guard, links, record};
use crate::ids::AttachmentId;
use crate::kernel::folders;
use crate::kernel::hook::Hook;
use crate::kernel::install::{self, Ensured, Installed};
use crate::kernel::pins;
use crate::kernel::stamp::Stamp;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::node::lock::{self, NodeLock};
use crate::path_error::PathError;
use crate::repair::{self, Repaired};

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
    #[error("cannot replace {hook} at {pin}: {source}; run `redirect upgrade` again")]
    Replace {
        /// The hook.
        hook: Hook,
        /// The link.
        pin: PathBuf,
        /// Why.
        source: SyscallError,
    },
}

/// What an upgrade did.
#[derive(Debug, Default)]
pub struct Upgraded {
    /// How many links run another program now.
    pub replaced: usize,
    /// Pods that were not as they were attached.
    pub repaired: Vec<Repaired>,
}

/// Brings the node to the programs of this binary.
///
/// # Errors
/// See [`Error`].
pub fn upgrade(node: &Node, lock: &NodeLock) -> Result<Upgraded, Error> {
    let pins = pins::current(node);
    if install::state(node) == Installed::Not && folders::generations(node)?.is_empty() {
        return Err(Error::NotInstalled { path: pins.folder().into() });
    }
    let replaced = match install::ensure(node, lock)? {
        Ensured::Fresh => 0,
        Ensured::Already => exchange_programs(node, lock)?,
    };
    let repaired = repair::repair(node, lock, None)?;
    Ok(Upgraded { replaced, repaired })
}

/// Whether the programs on the node are another build's, and this binary is not older than they are.
fn has_older_programs(node: &Node) -> bool {
    Stamp::read(&pins::current(node)).is_some_and(|stamp| !stamp.is_own() && !stamp.is_newer_than_this())
}

/// Whether the node has programs of another build, older or newer, or pods of another map layout.
#[must_use]
pub fn is_due(node: &Node) -> bool {
    let generations = folders::generations(node).unwrap_or_default();
    let foreign = Stamp::read(&pins::current(node)).is_some_and(|stamp| !stamp.is_own());
    let others = generations.iter().any(|generation| {
        generation.abi() != redirect_common::ABI_VERSION
            && folders::list(&generation.pods()).is_ok_and(|pods| !pods.is_empty())
    });
    foreign || others
}

/// What an ADD does for the node before it attaches its own pod: programs of this version, pods of an older
/// one brought over, and pods that have lost their pins attached again. What fails is logged and returned: it
/// is not this pod's fault, unless this pod needs what the old programs lack.
///
/// # Errors
/// The node's lock cannot be taken.
pub fn bring_up_to_date(node: &Node, id: &AttachmentId) -> Result<Option<Error>, lock::Error> {
    let whole = install::installed(node);
    let due = whole && has_older_programs(node) || older_generation_has_pods(node);
    if !due && !repair::is_needed(node, id, whole) {
        return Ok(None);
    }
    let lock = NodeLock::acquire(node)?;
    let settled = if due {
        upgrade(node, &lock).map(|upgraded| (upgraded.replaced, upgraded.repaired.len()))
    } else {
        repair::repair(node, &lock, None).map(|repaired| (0, repaired.len())).map_err(Error::from)
    };
    match settled {
        Ok((replaced, repaired)) => {
            tracing::warn!(replaced, repaired, "the node was brought in order");
            Ok(None)
        }
        Err(error) => {
            tracing::error!(%error, "the node could not be brought in order");
            Ok(Some(error))
        }
    }
}

/// A newer version's pods stay with it until somebody runs `redirect upgrade`.
fn older_generation_has_pods(node: &Node) -> bool {
    let generations = folders::generations(node).unwrap_or_default();
    generations.iter().any(|generation| {
        generation.abi() < pins::abi() && folders::list(&generation.pods()).is_ok_and(|pods| !pods.is_empty())
    })
}

fn exchange_programs(node: &Node, lock: &NodeLock) -> Result<usize, Error> {
    let pins = pins::current(node);
    let new = pins.replacement();
    folders::remove_tree(&new)?;
    let stamp = install::prepare_programs(node, lock, &new)?;
    fault::point("upgrade-exchange");
    exchange(&pins.programs(), &new)?;
    install::lead_to_inbound(&pins.map("INBOUND"), &pins.programs())?;
    fault::point("upgrade-links");
    let mut replaced = 0;
    for hook in Hook::ALL.iter().copied() {
        for folder in folders::attachments(&pins)? {
            let cookie = folders::cookies(&folder)?.first().copied();
            replaced += usize::from(replace(node, hook, &folder.link(hook), cookie)?);
        }
    }
    for attachment in record::all(node).map_err(attach::Error::from)? {
        // A pod of another version is not in this one's maps: a filter that does not find it there refuses
        // everything. The repair that follows brings it over, its filters last.
        if pins.has(&attachment.id) {
            guard::renew(node, &attachment)?;
        }
    }
    stamp.write(&pins)?;
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
fn replace(node: &Node, hook: Hook, pin: &Path, cookie: Option<u64>) -> Result<bool, Error> {
    // A hook that this pod does not need, or one without the name of its pod, which a repair makes again.
    let (Ok(link), Some(cookie)) = (sys::obj_get(pin), cookie) else { return Ok(false) };
    links::replace_program(node, hook, &link, cookie).or_else(|source| match source.errno() {
        // The cgroup or the namespace is gone: the pod is being deleted.
        Some(libc::ENOLINK) => Ok(false),
        _ => Err(Error::Replace { hook, pin: pin.into(), source }),
    })
}
