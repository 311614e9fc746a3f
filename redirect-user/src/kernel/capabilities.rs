//! What of root's power an ADD needs, and whether this process has it.

use std::fs;

/// A capability that an ADD needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As in capabilities(7).
    pub name: &'static str,
    /// Its bit, from linux/capability.h.
    number: u32,
    /// What an ADD does with it.
    purpose: &'static str,
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.purpose)
    }
}

/// All that an ADD needs. CAP_BPF and CAP_PERFMON are not among them: where bpf(2) asks for one of them it
/// takes CAP_SYS_ADMIN as well (`bpf_token_capable()`, kernel/bpf/token.c of Linux 6.18).
pub const NEEDED: [Capability; 2] = [
    Capability { name: "CAP_NET_ADMIN", number: 12, purpose: "for the routes and filters of a pod" },
    Capability { name: "CAP_SYS_ADMIN", number: 21, purpose: "for bpf(2), and to enter a pod's namespaces" },
];

/// Those that this process lacks, by its effective set; `None` where /proc does not tell.
#[must_use]
pub fn lacking() -> Option<Vec<Capability>> {
    lacking_by(&fs::read_to_string("/proc/self/status").ok()?)
}

fn lacking_by(status: &str) -> Option<Vec<Capability>> {
    let effective = set(status, "CapEff")?;
    Some(NEEDED.into_iter().filter(|needed| effective & 1 << needed.number == 0).collect())
}

/// One set of capabilities from `/proc/PID/status`.
pub(crate) fn set(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_says_what_is_lacking() {
        let lacking = |effective: &str| {
            let status = format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t0\n");
            let names = |all: Vec<Capability>| all.iter().map(|one| one.name).collect::<Vec<_>>();
            lacking_by(&status).map(names)
        };
        assert_eq!(lacking("000001ffffffffff"), Some(vec![]));
        assert_eq!(lacking("0000000000201000"), Some(vec![]));
        assert_eq!(lacking("0000000000200000"), Some(vec!["CAP_NET_ADMIN"]));
        assert_eq!(lacking("0000000000001000"), Some(vec!["CAP_SYS_ADMIN"]));
        // CAP_BPF and CAP_PERFMON open no namespace.
        assert_eq!(lacking("000000c000001000"), Some(vec!["CAP_SYS_ADMIN"]));
        assert_eq!(lacking("0"), Some(vec!["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]));
        assert_eq!((lacking("?"), lacking_by("Name:\tx\n")), (None, None));
    }
}
