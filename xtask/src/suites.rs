//! Set-up step: a containerd of a later Debian suite, and the CNI plugins that belong to it, without touching
//! what the machine's own apt knows or has installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;
use crate::debian::{Candidate, PrivateApt};
use crate::workspace::Workspace;

/// The major version that is wanted.
const MAJOR: &str = "2.";
/// Suites that may have it, the more settled one first.
const SUITES: [&str; 2] = ["forky", "sid"];
/// What is unpacked. The plugins of Debian 12 do not speak version 1.1.0 of the CNI specification.
const PACKAGES: [&str; 2] = ["containerd", "containernetworking-plugins"];

fn place(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("containerd")
}

/// Whether a containerd of a later suite was unpacked before.
pub(crate) fn has_containerd(workspace: &Workspace) -> bool {
    let releases = fs::read_dir(place(workspace)).into_iter().flatten().flatten();
    releases
        .filter(|release| release.file_name().to_string_lossy().starts_with(MAJOR))
        .any(|release| release.path().join("usr/bin/containerd").exists())
}

/// Fetches the packages and unpacks them to `containerd/VERSION` in the cache, which appears when it is
/// whole.
pub(crate) fn fetch_containerd(workspace: &Workspace) -> Result<()> {
    let parent = place(workspace);
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let scratch = tempfile::tempdir_in(&parent).context("cannot make a directory to unpack containerd in")?;
    let apt = PrivateApt::new(scratch.path(), &SUITES)?;
    let candidates = apt.candidates(PACKAGES[0])?;
    let Some(Candidate { version, suite }) = chosen(&candidates) else {
        let there: Vec<_> = candidates.iter().map(|candidate| &*candidate.version).collect();
        bail!("no {} {MAJOR}x in {}; there are: {}", PACKAGES[0], SUITES.join(", "), there.join(", "))
    };
    let wanted = PACKAGES.map(|package| format!("{package}/{suite}"));
    let root = scratch.path().join("root");
    apt.unpack(&format!("downloading containerd {version} of {suite}"), &wanted, &root)?;
    let said = cmd::output(workspace.command(root.join("usr/bin/containerd")).arg("--version"))?;
    ensure!(said.contains(&format!(" {MAJOR}")), "the package holds another containerd: {}", said.trim());
    let target = parent.join(version);
    fs::rename(&root, &target).with_context(|| format!("cannot move containerd to {}", target.display()))
}

/// The candidate of the wanted major version in the first suite that has one.
fn chosen(candidates: &[Candidate]) -> Option<&Candidate> {
    let of = |suite: &&str| {
        let mut all = candidates.iter();
        all.find(|candidate| candidate.suite == *suite && candidate.version.starts_with(MAJOR))
    };
    SUITES.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_suite_with_the_major_version_is_taken() {
        let of = |version: &str, suite: &str| Candidate { version: version.into(), suite: suite.into() };
        let all = [of("2.3.1-1", "sid"), of("1.7.24~ds1-6", "forky")];
        assert_eq!(chosen(&all).map(|candidate| candidate.suite.as_str()), Some("sid"));
        assert!(chosen(&all[1..]).is_none());
    }
}
