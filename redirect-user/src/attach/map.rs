//! A pinned map of the node: opened, and what can go wrong with it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError};

use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::path_error::PathError;

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The map is not there or not ours.
    #[error("cannot open map {path}: {source}; is redirect-cni installed on this node?")]
    Open { path: PathBuf, source: Box<MapError> },
    /// An entry could not be changed.
    #[error("cannot {what} map {map}: {}", cause(source))]
    Change { what: &'static str, map: &'static str, source: Box<MapError> },
    /// A map has no room.
    #[error(transparent)]
    Full(#[from] Box<Full>),
    /// The keys of a map could not be listed or removed.
    #[error("cannot empty map {map}: {source}")]
    Scan {
        /// Which map.
        map: &'static str,
        /// Why.
        source: SyscallError,
    },
    /// What belongs to pods that are gone could not be taken out.
    #[error("cannot sweep map {map}: {source}")]
    Sweep {
        /// Which map.
        map: String,
        /// Why.
        source: SyscallError,
    },
    /// A folder of maps cannot be read.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No room for one more guarded pod.
    #[error(
        "map GUARD is full: {pods} of {pods} entries, one for each guarded pod; `redirect gc` frees those of pods that \
         are gone"
    )]
    GuardFull { pods: u64 },
    /// The number of CPUs is needed for per-CPU values.
    #[error("cannot read {path}: {source}")]
    Cpus { path: &'static str, source: std::io::Error },
}

/// A map of the node that has no room for one more entry.
#[derive(Debug, thiserror::Error)]
#[error(
    "map {map} is full: {entries} of {limit} entries{}; {holder} has most of them, {held}. Run `redirect gc` for \
     pods that are gone, or give the pod with most of them fewer ranges, ports or addresses",
    errno.map_or_else(String::new, |errno| format!(" ({errno})"))
)]
pub struct Full {
    /// Its name.
    pub map: &'static str,
    /// How many entries it has.
    pub entries: usize,
    /// How many it may have.
    pub limit: u32,
    /// The kernel's answer, where it was asked for room: E2BIG from a hash table, ENOSPC from a trie.
    pub errno: Option<&'static str>,
    /// The pod with most of them.
    pub holder: String,
    /// How many that are.
    pub held: usize,
}

/// Opens a pinned map.
pub(super) fn open<T>(node: &Node, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let path = pins::current(node).map(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    map.map_err(|source| Error::Open { path, source: Box::new(source) })
}

/// A pinned map as a descriptor.
pub(super) fn raw(node: &Node, name: &'static str) -> Result<OwnedFd, Error> {
    sys::obj_get(&pins::current(node).map(name)).map_err(scan(name))
}

/// The error of a map whose keys cannot be listed or removed.
pub(super) fn scan(map: &'static str) -> impl Fn(SyscallError) -> Error {
    move |source| Error::Scan { map, source }
}

/// The error of an entry that cannot be changed.
pub(super) fn change<T>(
    what: &'static str,
    map: &'static str,
    result: Result<T, MapError>,
) -> Result<T, Error> {
    result.map_err(|source| Error::Change { what, map, source: Box::new(source) })
}

/// As [`change`], for a key that may be missing.
pub(super) fn change_optional<T>(
    what: &'static str,
    map: &'static str,
    result: Result<T, MapError>,
) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(Error::Change { what, map, source: Box::new(source) }),
    }
}

/// What the kernel said. (aya's own text names the call and leaves the errno to the source.)
fn cause(error: &MapError) -> String {
    match error {
        MapError::SyscallError(failed) => format!("{}: {}", failed.call, failed.io_error),
        other => other.to_string(),
    }
}

/// The kernel's errno; 0 where there is none.
pub(super) fn errno_of(error: &MapError) -> i32 {
    match error {
        MapError::SyscallError(failed) => failed.io_error.raw_os_error().unwrap_or(0),
        _ => 0,
    }
}

/// Whether the kernel says that a map has no room: `htab_map_update_elem()` with E2BIG, `trie_update_elem()`
/// with ENOSPC.
pub(super) fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(failed) = error else { return false };
    matches!(failed.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}
