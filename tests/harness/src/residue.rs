//! What must not be left when a test is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use redirect_user::kernel::filter::Filter;
use redirect_user::kernel::hook::Hook;

use crate::cgroup::Cgroup;
use crate::node::{PREFIX, entries_with_prefix};

/// The maps of redirect-cni, as the kernel names them. INBOUND is not among them: whoever lists maps in the
/// moment of its removal can leave one behind (docs/kernel-facts.md, "Maps"), and this check lists maps.
const MAPS: [&str; 20] = [
    "PODS",
    "RANGES",
    "PORTS",
    "SETS",
    "OWN",
    "DESTINATIONS",
    "CLAIMS",
    "HANDOFF",
    "CLIENTS",
    "LISTENERS",
    "LISTENING",
    "GUARD",
    "STATS",
    "TRACED",
    "TRACES",
    "ORIGIN",
    "DNS_PROXIES",
    "DNS_ASKED",
    "ENTERED",
    "ASKING",
];

/// Whether the kernel names one of our programs so.
fn is_ours(program: &str) -> bool {
    Hook::from_name(program).is_some() || Filter::ALL.iter().any(|filter| filter.name() == program)
}

/// What of ours is on the machine, each thing with a name that a person can look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residue {
    things: BTreeSet<String>,
}

impl Residue {
    /// Looks around: programs, maps, links, cgroups, mounts, directories, processes, network interfaces.
    #[must_use]
    pub fn now() -> Residue {
        let programs = our_programs();
        let mut things: BTreeSet<String> =
            programs.iter().map(|(id, name)| format!("program {id} {name}")).collect();
        things.extend(our_maps());
        things.extend(links_of(&programs));
        things.extend(paths());
        things.extend(processes());
        things.extend(interfaces());
        Residue { things }
    }

    /// How many things are named so at the beginning, for example `link `.
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.things.iter().filter(|thing| thing.starts_with(kind)).count()
    }

    /// What is here now and was not at the time of `self`. The kernel frees programs, maps and sockets some
    /// time after the last reference is gone, so this looks again until nothing is left or the time is over.
    ///
    /// The guard's programs, and the maps that these hold, go with the pods' namespaces. The kernel takes
    /// namespaces apart one after another in the background (`cleanup_net()`), which takes longer where
    /// connection tracking has to be emptied. So they, and they alone, are waited for patiently.
    #[must_use]
    pub fn left_over(&self) -> Vec<String> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const OF_NAMESPACES: Duration = Duration::from_secs(40);
        let start = Instant::now();
        loop {
            let left: Vec<_> = Residue::now().things.difference(&self.things).cloned().collect();
            let of_filters = left.iter().all(|thing| thing.contains(" guard_") || thing.starts_with("map "));
            if left.is_empty() || start.elapsed() > if of_filters { OF_NAMESPACES } else { PATIENCE } {
                return left;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Id and name of our programs. A program that goes away while it is looked at is an error, and not there.
fn our_programs() -> BTreeMap<u32, String> {
    let all = loaded_programs().flatten();
    all.filter_map(|info| Some((info.id(), info.name_as_str()?.to_owned())))
        .filter(|(_, name)| is_ours(name))
        .collect()
}

fn our_maps() -> Vec<String> {
    let all = loaded_maps().flatten();
    all.filter_map(|info| Some((info.id(), info.name_as_str()?.to_owned())))
        .filter(|(_, name)| MAPS.contains(&name.as_str()))
        .map(|(id, name)| format!("map {id} {name}"))
        .collect()
}

fn links_of(programs: &BTreeMap<u32, String>) -> Vec<String> {
    let all = loaded_links().flatten();
    all.filter_map(|link| Some(format!("link {} of {}", link.id(), programs.get(&link.program_id())?)))
        .collect()
}

/// Waits until there is no link of our programs, and none of the programs that only links hold: a link loses
/// its id before its program is detached, and its program after that (`bpf_link_free()`).
pub(crate) fn await_no_links() {
    let left = || {
        let programs = our_programs();
        let linked = programs.values().filter(|name| !name.starts_with("guard_")).cloned();
        links_of(&programs).into_iter().chain(linked).collect::<Vec<_>>()
    };
    until("links are still there", || left().is_empty());
}

/// Removes pins of links of `inbound`, and waits until none of their programs, one for each link, is there.
pub(crate) fn end_inbound(pins: &[PathBuf]) {
    let linked: BTreeSet<u32> = loaded_links().flatten().map(|link| link.program_id()).collect();
    let mut programs = our_programs();
    programs.retain(|id, name| name == "inbound" && linked.contains(id));
    for pin in pins {
        fs::remove_file(pin).expect("remove a pin");
    }
    until("inbound is still linked", || {
        let now = our_programs();
        !programs.keys().any(|id| now.contains_key(id))
    });
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn paths() -> Vec<String> {
    let dirs = entries_with_prefix(&std::env::temp_dir());
    let cgroups = entries_with_prefix(&Cgroup::mount_point());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| path.contains(PREFIX));
    let mounts: Vec<_> = mounts.map(|path| format!("mount {path}")).collect();
    dirs.iter().chain(&cgroups).map(|path| format!("directory {}", path.display())).chain(mounts).collect()
}

/// The agents that this process started.
fn processes() -> Vec<String> {
    let own = std::process::id();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // "PID (NAME) STATE PARENT ..."
        let (head, tail) = stat.rsplit_once(") ")?;
        let parent: u32 = tail.split(' ').nth(1)?.parse().ok()?;
        (parent == own).then(|| format!("process {head})"))
    })
    .collect()
}

/// The machine's own interfaces: a pod's must never appear there.
fn interfaces() -> Vec<String> {
    let all = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    all.map(|entry| format!("interface {}", entry.file_name().to_string_lossy())).collect()
}
