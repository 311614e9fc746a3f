//! One lock per node: holding a [`NodeLock`] is the permission to change pins, maps and attachments.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

use crate::node::Node;

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The state folder or the lock file could not be made.
    #[error("cannot open the lock {path}: {source}; is the state directory writable?")]
    Open {
        /// The lock file.
        path: PathBuf,
        source: std::io::Error,
    },
    /// flock(2) failed.
    #[error("cannot lock {path}: {source}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        source: nix::Error,
    },
}

/// The node's lock, held until dropped. The kernel releases it when the process ends, however that happens.
#[derive(Debug)]
pub struct NodeLock {
    _flock: Flock<File>,
}

impl NodeLock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// The lock file cannot be opened or locked.
    pub fn acquire(node: &Node) -> Result<NodeLock, Error> {
        let path = node.lock_file();
        let open = || {
            fs::create_dir_all(&node.state_dir)?;
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)
        };
        let file = open().map_err(|source| Error::Open { path: path.clone(), source })?;
        let flock =
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, source)| Error::Lock { path, source })?;
        Ok(NodeLock { _flock: flock })
    }
}
