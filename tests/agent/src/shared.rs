//! What requests and the test share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use super::doors::Doors;
use super::store::Store;

/// The server, as requests and the test see it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) doors: Doors,
    pub(crate) tokens: Mutex<Vec<String>>,
    /// So many requests get 429 next.
    pub(crate) throttled: AtomicU32,
    /// New watches and pages are told that their version is gone.
    pub(crate) log: Mutex<Vec<String>>,
    pub(crate) bookmarks: Duration,
    pub(crate) closing: AtomicBool,
}
