//! A map without room: which one, how full, and which pod has most of it.

use std::collections::HashMap;

use crate::attach::guarded::Guarded;
use crate::attach::map::{Error, Full};
use crate::attach::record;
use crate::kernel::pins;
use crate::kernel::sys::RawMap;
use crate::node::Node;

/// The maps into which an ADD writes, besides GUARD.
const WRITTEN_BY_ADD: [&str; 7] = ["PODS", "RANGES", "PORTS", "SETS", "OWN", "CLAIMS", "STATS"];

/// The maps that programs fill.
const WRITTEN_BY_PROGRAMS: [&str; 6] =
    ["DESTINATIONS", "HANDOFF", "CLIENTS", "LISTENERS", "LISTENING", "DNS_PROXIES"];

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// How many entries it has.
    pub entries: usize,
    /// How many it may have.
    pub limit: u32,
    /// The pod with most of them, and how many; none in an empty map.
    most: Option<(u64, usize)>,
}

impl Fill {
    fn of(node: &Node, map: &'static str) -> Result<Fill, Error> {
        let failed = |source| Error::Scan { map, source };
        let Some(raw) = RawMap::open(&pins::current(node).map(map)).map_err(failed)? else {
            return Ok(Fill { map, entries: 0, limit: u32::MAX, most: None });
        };
        let counts: HashMap<u64, usize> = raw.entries_by_pod().map_err(failed)?;
        let most = counts.iter().max_by_key(|(_, count)| **count).map(|(cookie, count)| (*cookie, *count));
        Ok(Fill { map, entries: counts.values().sum(), limit: raw.limit(), most })
    }

    /// Whether there is no room for one more entry.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries >= self.limit as usize
    }

    /// The pod with most entries, and how many it has.
    #[must_use]
    pub fn most(&self, node: &Node) -> Option<(String, usize)> {
        self.most.map(|(cookie, count)| (holder(node, cookie), count))
    }

    /// As an error, with the kernel's answer if it gave one.
    fn full(&self, node: &Node, errno: Option<&'static str>) -> Full {
        let (holder, held) = self.most(node).unwrap_or_else(|| ("no pod".to_owned(), 0));
        Full { map: self.map, entries: self.entries, limit: self.limit, errno, holder, held }
    }
}

/// How full the maps are in which an ADD needs room. GUARD has one entry for each pod.
///
/// # Errors
/// A map cannot be read.
pub fn needed_by_add(node: &Node) -> Result<Vec<Fill>, Error> {
    let mut fills = WRITTEN_BY_ADD.iter().map(|map| Fill::of(node, map)).collect::<Result<Vec<_>, _>>()?;
    let (entries, limit) = Guarded::open(node)?.fill()?;
    fills.push(Fill { map: "GUARD", entries, limit, most: None });
    Ok(fills)
}

/// How full all maps are that have an entry for a pod.
///
/// # Errors
/// A map cannot be read.
pub fn all(node: &Node) -> Result<Vec<Fill>, Error> {
    let mut fills = needed_by_add(node)?;
    for map in WRITTEN_BY_PROGRAMS {
        fills.push(Fill::of(node, map)?);
    }
    Ok(fills)
}

/// The first map that has no room for an ADD.
///
/// # Errors
/// A map cannot be read.
pub fn without_room(node: &Node) -> Result<Option<Full>, Error> {
    let fills = needed_by_add(node)?;
    Ok(fills.iter().find(|fill| fill.is_full()).map(|fill| fill.full(node, None)))
}

/// The state of a map that has just refused an entry.
pub(super) fn of(node: &Node, map: &'static str, errno: i32) -> Full {
    let fill = Fill::of(node, map).unwrap_or(Fill { map, entries: 0, limit: 0, most: None });
    fill.full(node, Some(if errno == libc::ENOSPC { "ENOSPC" } else { "E2BIG" }))
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
