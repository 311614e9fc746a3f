//! Set-up steps for what is shipped: Helm's own engine and the API's schemas, which are Python packages, and
//! a small Debian to install the package in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Package, deb};
use crate::cmd;
use crate::workspace::Workspace;

/// The packages, with what they need, as the tests are written for.
const PYTHON_PACKAGES: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
/// As for Envoy, the system's own.
const PYTHON: &str = "/usr/bin/python3";
pub(crate) const PIP: [Package; 1] = [deb("python3-pip", "/usr/bin/pip3")];
/// The release of Debian that the package is tried on.
const SUITE: &str = "bookworm";

fn helm(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("helm")
}

/// Whether the packages were unpacked before.
pub(crate) fn has_helm(workspace: &Workspace) -> bool {
    let unpacked = |name: &str| {
        let (name, version) = name.split_once("==").unwrap_or((name, ""));
        helm(workspace).join(format!("{}-{version}.dist-info", name.replace('-', "_"))).exists()
    };
    PYTHON_PACKAGES.into_iter().all(unpacked)
}

/// Unpacks them to `helm` in the cache, which appears when it is whole.
pub(crate) fn fetch_helm(workspace: &Workspace) -> Result<()> {
    apt::install(&PIP)?;
    in_place(&workspace.cache, &helm(workspace), |scratch| {
        let mut pip = pip(workspace, scratch);
        cmd::progress("downloading Helm's library and the API's schemas", pip.args(PYTHON_PACKAGES))
    })
}

/// What unpacks packages, which are its last arguments, to a folder.
pub(crate) fn pip(workspace: &Workspace, folder: &Path) -> Command {
    let mut pip = workspace.command(PYTHON);
    pip.args(["-m", "pip", "install", "--only-binary=:all:", "--no-cache-dir", "--no-compile"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore", "--target"])
        .arg(folder);
    pip
}

fn debian(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("debian").join(SUITE)
}

/// Whether there is one.
pub(crate) fn has_debian(workspace: &Workspace) -> bool {
    debian(workspace).join("usr/bin/dpkg").exists()
}

/// Makes it in the cache with debootstrap, from the server of the machine's own sources.
pub(crate) fn make_debian(workspace: &Workspace) -> Result<()> {
    let server = crate::debian::server("Debian")?;
    let target = debian(workspace);
    in_place(target.parent().context("the cache has a path")?, &target, |scratch| {
        let mut debootstrap = workspace.command("/usr/sbin/debootstrap");
        debootstrap.args(["--variant=minbase", SUITE]).arg(scratch).arg(server);
        cmd::progress("making a small Debian to try the package in", &mut debootstrap)?;
        // What was downloaded is unpacked.
        fs::remove_dir_all(scratch.join("var/cache/apt/archives")).context("cannot tidy the small Debian")
    })
}

/// Lets `make` fill a folder beside its place, and puts it there when it is whole.
pub(crate) fn in_place(parent: &Path, target: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let scratch = tempfile::tempdir_in(parent).context("cannot make a directory to unpack in")?;
    let inside = scratch.path().join("root");
    fs::create_dir(&inside)?;
    make(&inside)?;
    if target.exists() {
        fs::remove_dir_all(target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    fs::rename(&inside, target).with_context(|| format!("cannot move it to {}", target.display()))
}
