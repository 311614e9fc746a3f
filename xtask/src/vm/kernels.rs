//! The kernels that are tried, and where they come from.
//!
//! A kernel is fetched once and kept in the cache under its name; remove the directory to fetch it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd;
use crate::debian::{Candidate, PrivateApt};
use crate::workspace::Workspace;

/// A kernel of Debian.
pub(crate) struct Kernel {
    /// The name for `cargo xtask test vm NAME`.
    pub(crate) name: &'static str,
    /// Suites that may have it; the newest version is taken.
    suites: &'static [&'static str],
    /// The package that always depends on the current version.
    package: &'static str,
    /// How many processors the guest has.
    pub(crate) cpus: u32,
    /// Its architecture, as Debian names it, where it is not this machine's.
    pub(crate) foreign: Option<&'static str>,
    /// Whether it has what we need. What has not must be refused, and say why.
    pub(crate) works: bool,
}

const PLAIN: &str = "linux-image-amd64";
const REALTIME: &str = "linux-image-rt-amd64";
const NEWEST: &[&str] = &["trixie-backports", "forky", "sid"];

const fn kernel(
    name: &'static str,
    suites: &'static [&'static str],
    package: &'static str,
    cpus: u32,
) -> Kernel {
    Kernel { name, suites, package, cpus, foreign: None, works: true }
}

/// Every kernel, the oldest first.
pub(crate) const KERNELS: &[Kernel] = &[
    Kernel { works: false, ..kernel("5.10", &["bullseye"], PLAIN, 1) },
    kernel("6.1", &["bookworm"], PLAIN, 1),
    kernel("6.1-rt", &["bookworm"], REALTIME, 1),
    kernel("6.12", &["trixie"], PLAIN, 2),
    kernel("6.12-rt", &["trixie"], REALTIME, 1),
    kernel("newest", NEWEST, PLAIN, 2),
    kernel("newest-rt", NEWEST, REALTIME, 1),
    Kernel { foreign: Some("arm64"), ..kernel("arm64", &["trixie"], "linux-image-arm64", 2) },
];

/// A kernel that was unpacked.
pub(crate) struct Files {
    /// What is booted.
    pub(crate) image: PathBuf,
    /// Its modules, `.../lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The kernel's files, fetched if they are not there.
    pub(crate) fn files(&self, workspace: &Workspace) -> Result<Files> {
        let parent = workspace.cache.join("kernels");
        let root = parent.join(self.name);
        if !root.exists() {
            fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
            self.fetch(&parent, &root)?;
        }
        let files = Files::find(&root)?;
        if !files.modules.join("modules.dep").exists() {
            let base = files.modules.ancestors().nth(3).context("modules are below a directory")?;
            cmd::run(Command::new("depmod").arg("-b").arg(base).arg(files.release()))?;
        }
        Ok(files)
    }

    fn fetch(&self, parent: &Path, root: &Path) -> Result<()> {
        let scratch =
            tempfile::tempdir_in(parent).context("cannot make a directory to unpack a kernel in")?;
        let apt = PrivateApt::of(scratch.path(), self.suites, self.foreign)?;
        let candidates = apt.candidates(self.package)?;
        let newest = candidates.iter().max_by_key(|candidate| numbers(&candidate.version));
        let Candidate { version, suite } =
            newest.with_context(|| format!("{} have no {}", self.suites.join(", "), self.package))?;
        let packages = with_parts(&apt, &format!("{}={version}", self.package))?;
        let unpacked = scratch.path().join("root");
        apt.unpack(&format!("downloading Linux {version} of {suite}"), &packages, &unpacked)?;
        Files::find(&unpacked)?;
        fs::rename(&unpacked, root).with_context(|| format!("cannot move a kernel to {}", root.display()))
    }
}

/// A kernel's package, and the parts that newer ones are split into.
fn with_parts(apt: &PrivateApt, package: &str) -> Result<Vec<String>> {
    let mut all = vec![package.to_owned()];
    let mut next = 0;
    while let Some(package) = all.get(next).cloned() {
        next += 1;
        for part in apt.exact_dependencies(&package)? {
            if part.starts_with("linux-") && !all.contains(&part) {
                all.push(part);
            }
        }
    }
    Ok(all)
}

/// The numbers in a version, to compare with.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

impl Files {
    fn find(root: &Path) -> Result<Files> {
        let places = [root.join("lib/modules"), root.join("usr/lib/modules")];
        let modules = places.iter().find_map(|place| first(place, "")).context("a kernel has modules")?;
        let beside = modules.join("vmlinuz");
        let image = first(&root.join("boot"), "vmlinuz").or_else(|| beside.exists().then_some(beside));
        Ok(Files { image: image.with_context(|| format!("no kernel below {}", root.display()))?, modules })
    }

    /// The release, as `uname -r` says it.
    pub(crate) fn release(&self) -> &std::ffi::OsStr {
        self.modules.file_name().unwrap_or_default()
    }
}

/// The first entry of a directory whose name begins so.
fn first(dir: &Path, begin: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(dir).ok()?.flatten();
    entries.find(|entry| entry.file_name().to_string_lossy().starts_with(begin)).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("7.3.4-1~bpo13+1") > numbers("7.2.13-1"));
        assert!(numbers("6.12.117-1") > numbers("6.1.176-1"));
    }
}
