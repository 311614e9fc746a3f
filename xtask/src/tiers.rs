//! The tiers of tests, from the fastest to the one that boots machines: to add one, add an entry.

use anyhow::Result;

use crate::soak::SOAK;
use crate::workspace::Workspace;
use crate::{chroot, dist, lint, tidy, vm};

/// Tests that need the same things and are run together.
pub(crate) struct Tier {
    /// The name for `cargo xtask test NAME`.
    pub(crate) name: &'static str,
    /// What it proves.
    pub(crate) about: &'static str,
    /// Groups of [`crate::groups`] that it needs.
    pub(crate) groups: &'static [&'static str],
    /// Whether a plain `cargo xtask test`, and so CI, runs it.
    pub(crate) plain: bool,
    /// Whether only root can run it.
    pub(crate) root: bool,
    /// CI ends it after this time, so that one hanging test does not cost the report of all.
    pub(crate) minutes: u32,
    /// What is run, in order.
    pub(crate) jobs: &'static [Job],
}

/// One part of a tier.
pub(crate) enum Job {
    /// Arguments of `cargo test`, which runs on all packages but the kernel programs.
    Tests(&'static [&'static str]),
    /// A check of ours that counts as one test.
    Check(fn(&Workspace) -> Result<()>),
}

/// Arguments after which the tests of one file run one by one: they share the machine's BPF objects and its
/// load.
const ONE_BY_ONE: &str = "--test-threads=1";

const fn tier(
    name: &'static str,
    about: &'static str,
    groups: &'static [&'static str],
    jobs: &'static [Job],
) -> Tier {
    Tier { name, about, groups, plain: true, root: true, minutes: 10, jobs }
}

/// Every tier, in the order in which they run.
pub(crate) const TIERS: &[Tier] = &[
    Tier { root: false, ..tier("tidy", "house rules about files", &[], &[Job::Check(tidy::check)]) },
    Tier {
        root: false,
        ..tier(
            "lint",
            "format, clippy, warnings; licences and versions of crates",
            &["toolchain", "lint"],
            &[Job::Check(lint::check)],
        )
    },
    Tier {
        root: false,
        ..tier(
            "unit",
            "pure functions, and the documents against the code; no privileges",
            &["toolchain", "lint"],
            &[
                Job::Tests(&[
                    "--lib",
                    "--bins",
                    "--test",
                    "decide",
                    "--test",
                    "abi",
                    "--test",
                    "ownership",
                    "--test",
                    "corpus",
                    "--test",
                    "documents",
                ]),
                Job::Tests(&["--doc"]),
            ],
        )
    },
    Tier {
        // Thousands of pods attached and detached, and connections by the ten thousand.
        minutes: 20,
        ..tier(
            "kernel",
            "the data path, on this kernel",
            &["toolchain", "mesh"],
            &[
                Job::Tests(&["--test", "features", "--", ONE_BY_ONE]),
                Job::Tests(&["--test", "datapath", "--", ONE_BY_ONE]),
            ],
        )
    },
    tier(
        "capture",
        "DNS, unusual ways to connect, large policies, the tools",
        // dig comes with the oracle's group.
        &["toolchain", "mesh", "oracle"],
        &[Job::Tests(&["--test", "capture", "--", ONE_BY_ONE])],
    ),
    Tier {
        minutes: 15,
        ..tier(
            "plugin",
            "the plugin as a process, called as a runtime would",
            &["toolchain", "mesh", "faults"],
            &[
                Job::Tests(&["--test", "plugin", "--", ONE_BY_ONE, "--skip", "fuzz::"]),
                // Each of these goes on for a time of its own; side by side that is the time of one.
                Job::Tests(&["--test", "plugin", "--", "--test-threads=8", "fuzz::"]),
                Job::Check(chroot::check),
            ],
        )
    },
    tier(
        "guard",
        "the second line: closed when what redirects is gone, unnoticed when it is not",
        // iptables comes with the oracle's group.
        &["toolchain", "mesh", "oracle"],
        &[Job::Tests(&["--test", "guard", "--", ONE_BY_ONE])],
    ),
    Tier {
        minutes: 15,
        ..tier(
            "tool",
            "the operator's tool, as an operator runs it",
            // iptables comes with the oracle's group, strace with the faults'.
            &["toolchain", "mesh", "oracle", "faults", "bpftrace", "browser"],
            &[Job::Tests(&["--test", "tool", "--", ONE_BY_ONE])],
        )
    },
    tier(
        "agent",
        "the node's agent against an API server, and kubectl beside it",
        &["toolchain", "mesh", "kubectl"],
        &[
            Job::Tests(&["--test", "agent", "--", "--test-threads=4", "--skip", "kernel::", "--skip", SOAK]),
            Job::Tests(&["--test", "agent", "--", ONE_BY_ONE, "kernel::"]),
        ],
    ),
    tier(
        "soak",
        "a node under use for three minutes, or as many as `--minutes` says: nothing grows, counters add up",
        &["toolchain", "mesh"],
        &[Job::Tests(&["--test", "agent", "--", ONE_BY_ONE, "--nocapture", SOAK])],
    ),
    tier(
        "deploy",
        "chart, packages and image: rendered, installed, started, removed",
        &["toolchain", "mesh", "containerd", "kubectl", "deploy"],
        &[
            Job::Check(dist::for_tests),
            Job::Tests(&["--test", "deploy", "--", "--test-threads=2"]),
            Job::Tests(&["--test", "image"]),
        ],
    ),
    tier(
        "oracle",
        "the same connections under iptables and under ours",
        &["toolchain", "mesh", "oracle"],
        &[Job::Tests(&["--test", "oracle", "--", ONE_BY_ONE])],
    ),
    tier(
        "vm",
        "the oldest kernel that works, in a virtual machine; `vm --all` boots all",
        // The tests that the guest runs want what they want here.
        &["toolchain", "mesh", "oracle", "vm"],
        &[Job::Check(vm::check)],
    ),
    tier(
        "envoy",
        "real Envoys as sidecars, and the demo",
        &["toolchain", "mesh", "languages"],
        &[Job::Tests(&["--test", "envoy", "--", ONE_BY_ONE])],
    ),
    tier(
        "containerd",
        "containerd 1.6 and 2.1 call the plugin, pods with real Envoys",
        &["toolchain", "mesh", "containerd"],
        &[Job::Tests(&["--test", "containerd"])],
    ),
    tier(
        "bookinfo",
        "Istio's Bookinfo on containerd, opened in a browser",
        &["toolchain", "mesh", "containerd", "browser"],
        &[Job::Tests(&["--test", "bookinfo-page", "--", ONE_BY_ONE])],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;

    /// The names of the workspace's test targets, from cargo's own account.
    fn test_targets() -> Vec<String> {
        let workspace = Workspace::find().unwrap();
        let account = cmd::output(workspace.cargo().args(["metadata", "--no-deps", "--format-version", "1"]));
        let account = account.unwrap();
        let targets = account.split("\"kind\":[\"test\"]").skip(1);
        let name = |target: &str| Some(target.split_once("\"name\":\"")?.1.split('"').next()?.to_owned());
        targets.filter_map(name).collect()
    }

    #[test]
    fn every_test_target_is_run_by_a_tier() {
        let targets = test_targets();
        assert!(targets.len() > 5, "cargo names the targets: {targets:?}");
        let run = |name: &str| {
            let jobs = TIERS.iter().flat_map(|tier| tier.jobs);
            jobs.into_iter().any(|job| matches!(job, Job::Tests(arguments) if arguments.windows(2).any(|w| w == ["--test", name])))
        };
        let forgotten: Vec<_> = targets.iter().filter(|name| !run(name)).collect();
        assert!(forgotten.is_empty(), "no tier in xtask/src/tiers.rs runs {forgotten:?}");
    }
}
