//! The one error for a step on a file or folder that failed: what was tried, on which path, and the kernel's
//! reason.

use std::io;
use std::path::{Path, PathBuf};

/// A step on a path that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct PathError {
    /// What was tried: a verb that stands before the path.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl PathError {
    /// For `map_err`: a failed step becomes this error.
    pub fn at<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> PathError {
        move |source| PathError { what, path: path.into(), source: source.into() }
    }
}

/// Whether the kernel says that there is nothing at this path. What cannot be looked at is not gone.
#[must_use]
pub fn is_gone(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| is_not_found(&error))
}

/// Whether an error says that a path leads nowhere.
pub(crate) fn is_not_found(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// As the step's result, except that what is gone already is fine.
///
/// # Errors
/// Every other failure.
pub(crate) fn fine_if_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
