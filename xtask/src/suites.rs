//! Set-up step: a containerd of a later Debian suite, and the CNI plugins that belong to it, without touching
//! what the machine's own apt knows or has installed.
//!
//! apt gets a configuration of its own: the same server that the machine's sources name, other suites, and
//! lists and archives in a directory that is gone afterwards. Packages are only unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;
use crate::workspace::Workspace;

/// The major version that is wanted.
const MAJOR: &str = "2.";
/// Suites that may have it, the more settled one first.
const SUITES: [&str; 2] = ["forky", "sid"];
/// What is unpacked. The plugins of Debian 12 do not speak version 1.1.0 of the CNI specification.
const PACKAGES: [&str; 2] = ["containerd", "containernetworking-plugins"];
/// Debian's keys, where the package debian-archive-keyring puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let apt = PrivateApt::new(scratch.path(), &server()?)?;
    cmd::progress("reading what later suites have", apt.command("apt-get", &["update"]).arg("--yes"))?;
    let (suite, version) = apt.find(PACKAGES[0])?;
    let wanted = PACKAGES.map(|package| format!("{package}/{suite}"));
    let label = format!("downloading containerd {version} of {suite}");
    cmd::progress(
        &label,
        apt.command("apt-get", &["download"]).args(wanted).current_dir(scratch.path().join("debs")),
    )?;
    let root = scratch.path().join("root");
    for package in fs::read_dir(scratch.path().join("debs"))? {
        cmd::run(workspace.command("dpkg-deb").arg("--extract").arg(package?.path()).arg(&root))?;
    }
    let said = cmd::output(workspace.command(root.join("usr/bin/containerd")).arg("--version"))?;
    ensure!(said.contains(&format!(" {MAJOR}")), "the package holds another containerd: {}", said.trim());
    let target = parent.join(version);
    fs::rename(&root, &target).with_context(|| format!("cannot move containerd to {}", target.display()))
}

/// The server of the machine's own Debian sources.
pub(crate) fn server() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    first_debian(&cmd::output(&mut command)?)
        .context("apt's sources name no server of Debian, where other suites would be found")
}

/// The address of the first line that is Debian's main archive.
fn first_debian(lines: &str) -> Option<String> {
    lines.lines().find_map(|line| line.strip_prefix("Debian Debian ")).map(str::to_owned)
}

/// apt with a configuration of its own.
struct PrivateApt {
    options: Vec<String>,
}

impl PrivateApt {
    fn new(dir: &Path, server: &str) -> Result<PrivateApt> {
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let line = |suite| format!("deb [signed-by={KEYRING}] {server} {suite} main\n");
        fs::write(dir.join("sources.list"), SUITES.map(line).concat())?;
        let dir = dir.display();
        let options = vec![
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // Nothing but the list of packages is needed.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::Languages=none".into(),
            // The unprivileged user of apt cannot write below root's home.
            "APT::Sandbox::User=root".into(),
        ];
        Ok(PrivateApt { options })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option])).args(arguments);
        command
    }

    /// The first suite that has the wanted version of a package, and the version.
    fn find(&self, package: &str) -> Result<(&'static str, String)> {
        let found = cmd::output(&mut self.command("apt-cache", &["madison", package]))?;
        match SUITES.iter().find_map(|suite| Some((*suite, version_in(&found, suite)?))) {
            Some(found) => Ok(found),
            None => bail!("no {package} {MAJOR}x in {}; there are:\n{found}", SUITES.join(", ")),
        }
    }
}

/// The version in `apt-cache madison`'s `PACKAGE | VERSION | SERVER SUITE/main amd64 Packages` for a suite.
fn version_in(madison: &str, suite: &str) -> Option<String> {
    madison.lines().find_map(|line| {
        let mut columns = line.split('|').map(str::trim).skip(1);
        let version = columns.next()?;
        let here = columns.next()?.split(' ').any(|word| word == format!("{suite}/main"));
        (here && version.starts_with(MAJOR)).then(|| version.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_suite_with_the_major_version_is_taken() {
        let madison = "containerd | 2.3.1-1 | http://a/debian sid/main amd64 Packages\n\
                       containerd | 1.7.24~ds1-6 | http://a/debian forky/main amd64 Packages\n";
        assert_eq!(version_in(madison, "forky"), None);
        assert_eq!(version_in(madison, "sid").as_deref(), Some("2.3.1-1"));
    }

    #[test]
    fn debians_own_archive_is_told_from_others() {
        let lines = "Debian Debian-Security http://a/debian-security/\n. . http://b/\nDebian Debian http://a/debian/\n";
        assert_eq!(first_debian(lines).as_deref(), Some("http://a/debian/"));
        assert_eq!(first_debian("Ubuntu Ubuntu http://a/ubuntu/\n"), None);
    }
}
