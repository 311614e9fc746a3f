//! The map GUARD, as attach and detach write it: which pod a filter's `classid` stands for.
//!
//! A pod has one entry, however many interfaces and attachments it has. So no pod can fill it.

use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData};
use redirect_common::{GUARDED_PODS, GuardedPod};

use crate::attach::map::{Error, change, open, raw, scan};
use crate::kernel::sys;
use crate::node::Node;

/// The pinned map.
pub(crate) struct Guarded {
    entries: Array<MapData, GuardedPod>,
    /// The same, to read all of it at once.
    all: OwnedFd,
}

impl Guarded {
    /// Opens the map of an installed node.
    ///
    /// # Errors
    /// It is not pinned.
    pub(crate) fn open(node: &Node) -> Result<Guarded, Error> {
        Ok(Guarded { entries: open(node, "GUARD")?, all: raw(node, "GUARD")? })
    }

    /// The entry for a pod: the one that its record knows, if that is its own or free, else the first such
    /// from where its cookie falls. Cookies are given in sequence, so a freed entry is not taken soon again.
    ///
    /// # Errors
    /// The map cannot be read, or every entry is another pod's.
    pub(crate) fn entry_of(&self, cookie: u64, known: u32) -> Result<u32, Error> {
        let usable = |entry: &GuardedPod| entry.cookie == cookie || entry.cookie == 0;
        // Entry 0 is what a filter without a classid would have.
        let places = u64::from(GUARDED_PODS - 1);
        let place = |step: u64| ((cookie % places + step) % places + 1) as u32;
        for index in [known, place(0)] {
            if index != 0 && usable(&self.get(index)?) {
                return Ok(index);
            }
        }
        let all = self.all()?;
        let of = |index: u32| all.get(index as usize).is_some_and(|(_, entry)| usable(entry));
        (1..places).map(place).find(|index| of(*index)).ok_or(Error::GuardFull { pods: places })
    }

    /// All entries in the order of their numbers, some thousand in one call.
    fn all(&self) -> Result<Vec<(u32, GuardedPod)>, Error> {
        sys::map_entries(&self.all).map_err(scan("GUARD"))
    }

    /// How many pods have an entry, and how many may.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn fill(&self) -> Result<(usize, u32), Error> {
        let taken = self.all()?.iter().filter(|(_, entry)| entry.cookie != 0).count();
        Ok((taken, GUARDED_PODS - 1))
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
        for (index, entry) in self.all()? {
            if entry.cookie != 0 && !claimed(index, entry.cookie) {
                self.set(index, &GuardedPod::FREE)?;
            }
        }
        Ok(())
    }
}
