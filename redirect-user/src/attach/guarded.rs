//! The map GUARD, as attach and detach write it: which pod a filter's `classid` stands for.

use aya::maps::{Array, MapData};
use redirect_common::{GUARDED_PODS, GuardedPod};

use crate::attach::tables::{Error, change, open};
use crate::node::Node;

/// The pinned map.
pub(crate) struct Guarded {
    entries: Array<MapData, GuardedPod>,
}

impl Guarded {
    /// Opens the map of an installed node.
    ///
    /// # Errors
    /// It is not pinned.
    pub(crate) fn open(node: &Node) -> Result<Guarded, Error> {
        Ok(Guarded { entries: open(node, "GUARD")? })
    }

    /// The entry for a pod: the one that its record knows, if that is its own or free, else the first such
    /// from where its cookie falls. Cookies are given in sequence, so a freed entry is not taken soon again.
    ///
    /// # Errors
    /// The map cannot be read, or every entry is another pod's.
    pub(crate) fn entry_of(&self, cookie: u64, known: u32) -> Result<u32, Error> {
        let usable = |index: u32| self.get(index).map(|entry| entry.cookie == cookie || entry.cookie == 0);
        if known != 0 && usable(known)? {
            return Ok(known);
        }
        // Entry 0 is what a filter without a classid would have.
        let places = u64::from(GUARDED_PODS - 1);
        for step in 0..places {
            let index = ((cookie % places + step) % places + 1) as u32;
            if usable(index)? {
                return Ok(index);
            }
        }
        Err(Error::GuardFull { pods: places })
    }

    /// What an entry holds.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn get(&self, index: u32) -> Result<GuardedPod, Error> {
        change("read", "GUARD", self.entries.get(&index, 0))
    }

    /// Gives an entry to a pod.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn set(&mut self, index: u32, pod: &GuardedPod) -> Result<(), Error> {
        change("change", "GUARD", self.entries.set(index, pod, 0))
    }

    /// Frees an entry, if it is that pod's.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn free(&mut self, index: u32, cookie: u64) -> Result<(), Error> {
        if index != 0 && self.get(index)?.cookie == cookie {
            self.set(index, &GuardedPod::FREE)?;
        }
        Ok(())
    }

    /// Frees every entry that is not claimed. Looks at each.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub(crate) fn free_unclaimed(&mut self, claimed: impl Fn(u32, u64) -> bool) -> Result<(), Error> {
        for index in 1..GUARDED_PODS {
            let cookie = self.get(index)?.cookie;
            if cookie != 0 && !claimed(index, cookie) {
                self.set(index, &GuardedPod::FREE)?;
            }
        }
        Ok(())
    }
}
