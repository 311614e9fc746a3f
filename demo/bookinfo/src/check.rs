//! A promise of the demonstration, and whether it was kept.

use serde::Serialize;

/// A promise.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// What was promised.
    pub(crate) promise: String,
    /// What was found.
    pub(crate) found: String,
    /// Whether the promise was kept.
    pub(crate) ok: bool,
}

impl Check {
    pub(crate) fn new(promise: impl Into<String>, found: impl Into<String>, ok: bool) -> Check {
        Check { promise: promise.into(), found: found.into(), ok }
    }
}
