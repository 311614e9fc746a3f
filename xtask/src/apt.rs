//! Debian packages: which are missing, told by a file of theirs and not by asking apt, and how they get
//! installed.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::workspace::is_root;

/// A Debian package and a file that is there when it is installed.
#[derive(Clone, Copy)]
pub(crate) struct Package {
    /// The name that apt knows.
    pub(crate) deb: &'static str,
    /// A path that tells without apt, and on other distributions too, that there is nothing to do.
    pub(crate) probe: &'static str,
    /// Advice for releases of Debian and Ubuntu that lack it.
    pub(crate) elsewhere: Option<&'static str>,
}

/// A package that every supported release has.
pub(crate) const fn deb(deb: &'static str, probe: &'static str) -> Package {
    Package { deb, probe, elsewhere: None }
}

impl Package {
    fn is_missing(&self) -> bool {
        !Path::new(self.probe).exists()
    }
}

/// The packages of a list that are not installed.
pub(crate) fn missing(packages: &[Package]) -> Vec<Package> {
    packages.iter().copied().filter(Package::is_missing).collect()
}

/// Installs those packages of a list that are missing.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let lacking = missing(packages);
    let names: Vec<_> = lacking.iter().map(|package| package.deb).collect();
    if names.is_empty() {
        return Ok(());
    }
    require_apt(packages)?;
    require_root(&names)?;
    update();
    cmd::progress(&format!("installing {}", names.join(" ")), apt_get(&["install"]).args(&names))
        .with_context(|| {
            let advice =
                lacking.iter().filter_map(|package| package.elsewhere).map(|advice| format!(" ({advice})"));
            format!("apt-get did not install {}{}", names.join(" "), advice.collect::<String>())
        })?;
    match missing(packages).first() {
        None => Ok(()),
        Some(still) => bail!(
            "the package {} is installed, but {} is not there: correct the probe in xtask/src/groups.rs",
            still.deb,
            still.probe
        ),
    }
}

fn require_apt(packages: &[Package]) -> Result<()> {
    if Path::new("/usr/bin/apt-get").exists() {
        return Ok(());
    }
    let wanted: Vec<_> = missing(packages)
        .iter()
        .map(|package| format!("{} (Debian: {})", package.probe, package.deb))
        .collect();
    bail!(
        "this system has no apt-get, and only Debian and Ubuntu are set up automatically. \
         Install by hand what provides these files, then try again:\n  {}",
        wanted.join("\n  ")
    )
}

fn require_root(names: &[&str]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "packages are missing, and only root may install them. Run this, then try again:\n  \
         sudo apt-get update && sudo apt-get install --yes --no-install-recommends {}",
        names.join(" ")
    )
}

/// Refreshes apt's lists, once in our life. One source that cannot be reached must not stop us: if it was the
/// one that mattered, the install that follows says so.
fn update() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = cmd::progress("refreshing the package lists", &mut apt_get(&["update"])) {
            eprintln!("warning: {error:#}");
        }
    });
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .args(["--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_whose_file_is_there_is_not_missing() {
        let here = deb("coreutils", "/proc/self/exe");
        let absent = deb("no-such-package", "/no/such/file");
        let missing: Vec<_> = missing(&[here, absent]).iter().map(|package| package.deb).collect();
        assert_eq!(missing, ["no-such-package"]);
    }

    #[test]
    fn nothing_missing_needs_neither_apt_nor_root() {
        install(&[deb("coreutils", "/proc/self/exe")]).unwrap();
    }
}
