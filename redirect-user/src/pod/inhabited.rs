//! Network namespaces that have a process.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use crate::pod::netns::Netns;

/// The cookies of all network namespaces that have a process. `None` where this process does not see every
/// other one: in a pid namespace of its own, or without the right to look.
pub(crate) fn namespaces() -> Option<BTreeSet<u64>> {
    /// `PROC_PID_INIT_INO` of `linux/proc_ns.h`: the number of the first pid namespace.
    const FIRST: u64 = 0xefff_fffc;
    if fs::metadata("/proc/self/ns/pid").ok()?.ino() != FIRST {
        return None;
    }
    let (mut seen, mut cookies) = (BTreeSet::new(), BTreeSet::new());
    let processes: Vec<_> = fs::read_dir("/proc").ok()?.collect::<io::Result<_>>().ok()?;
    let processes = processes.into_iter().map(|entry| entry.path().join("task"));
    // A thread may be in another namespace than its process. What is gone meanwhile is in none.
    for thread in processes.filter_map(|tasks| fs::read_dir(tasks).ok()).flatten().flatten() {
        let path = thread.path().join("ns/net");
        let Ok(number) = fs::metadata(&path).map(|file| file.ino()) else { continue };
        if seen.contains(&number) {
            continue;
        }
        match Netns::open(&path) {
            Ok(netns) => cookies.insert(netns.cookie()) | seen.insert(number),
            Err(_) if !path.exists() => continue,
            Err(_) => return None,
        };
    }
    Some(cookies)
}
