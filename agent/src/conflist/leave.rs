//! Taking the plugin off the node in the order that leaves no pod half-done: the entry first, then what
//! belongs to pods that are gone, and programs and plugin when the last redirected pod is.

use std::path::{Path, PathBuf};

use redirect_user::attach;
use redirect_user::gc::{self, Listed};
use redirect_user::inspect;
use redirect_user::kernel::install;
use redirect_user::node::Node;
use redirect_user::node::lock::{self, NodeLock};
use thiserror::Error;

use super::files;

/// What stopped it. What was done stays done.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be written or removed.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The node's lock.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Records, or what belongs to pods that are gone.
    #[error(transparent)]
    Attachments(#[from] attach::Error),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] install::Error),
}

/// How far it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Files that had the entry.
    pub changed: Vec<PathBuf>,
    /// Pods that are still redirected; the runtime needs the plugin to delete them.
    pub pods: usize,
}

impl Left {
    /// Programs and plugin are off the node.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.pods == 0
    }
}

/// Takes away what can go now. To be repeated until [`Left::gone`].
///
/// # Errors
/// See [`Error`].
pub fn once(node: &Node, conf_dir: &Path, bin_dir: &Path) -> Result<Left, Error> {
    let changed = files::disable(conf_dir)?.changed;
    let lock = NodeLock::acquire(node)?;
    gc::collect(node, &lock, |_| Listed::Unasked)?;
    let pods = inspect::list(node)?.len();
    if pods == 0 {
        install::remove(node, &lock)?;
        files::remove_binary(bin_dir)?;
    }
    Ok(Left { changed, pods })
}
