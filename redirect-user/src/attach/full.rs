//! A map without room: which one, how full, and which pod has most of it.

use std::collections::HashMap;

use aya::maps::{MapData, MapError};

use crate::attach::record;
use crate::kernel::pins;
use crate::node::Node;

/// A map of the node that has no room for one more entry.
#[derive(Debug, thiserror::Error)]
#[error(
    "map {map} is full: {entries} of {limit} entries ({errno}); {holder} has most of them, {held}. Run `redirect \
     gc` for pods that are gone, or give the pod with most of them fewer ranges, ports or addresses"
)]
pub struct Full {
    /// Its name.
    pub map: &'static str,
    /// How many entries it has.
    pub entries: usize,
    /// How many it may have.
    pub limit: u32,
    /// The kernel's answer: E2BIG from a hash table, ENOSPC from a trie.
    pub errno: &'static str,
    /// The pod with most of them.
    pub holder: String,
    /// How many that are.
    pub held: usize,
}

impl Full {
    /// The state of a map whose entries belong to these namespaces.
    pub(super) fn of(node: &Node, map: &'static str, errno: i32, cookies: &[u64]) -> Full {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for cookie in cookies {
            *counts.entry(*cookie).or_default() += 1;
        }
        let (cookie, held) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default();
        let info = MapData::from_pin(pins::current(node).map(map)).and_then(|data| data.info());
        Full {
            map,
            entries: cookies.len(),
            limit: info.map_or(0, |info| info.max_entries()),
            errno: if errno == libc::ENOSPC { "ENOSPC" } else { "E2BIG" },
            holder: holder(node, cookie),
            held,
        }
    }
}

/// Whether the kernel says that a map has no room: `htab_map_update_elem()` with E2BIG, `trie_update_elem()`
/// with ENOSPC.
pub(super) fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(failed) = error else { return false };
    matches!(failed.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

/// The pod of a namespace, by its records.
fn holder(node: &Node, cookie: u64) -> String {
    let records = record::all(node).unwrap_or_default();
    let record = records.iter().find(|record| record.cookie == cookie);
    match record.map(|record| (&record.pod, &record.id.container_id)) {
        Some((Some(pod), _)) => format!("pod {pod}"),
        Some((None, container)) => format!("container {container}"),
        None => format!("a pod that is not recorded (cookie {cookie})"),
    }
}
