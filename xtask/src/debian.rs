//! Packages of other Debian suites, without touching what the machine's own apt knows or has installed.
//!
//! apt gets a configuration of its own: the same server that the machine's sources name, other suites, and
//! lists and archives in a directory that is gone afterwards. Packages are only unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd;

/// Debian's keys, where the package debian-archive-keyring puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with a configuration of its own.
pub(crate) struct PrivateApt {
    options: Vec<String>,
    debs: PathBuf,
}

/// A package of a suite, as `apt-cache madison` lists it.
pub(crate) struct Candidate {
    pub(crate) version: String,
    /// The suite that has it.
    pub(crate) suite: String,
}

impl PrivateApt {
    /// Prepares it in a directory and reads what the suites have.
    pub(crate) fn new(dir: &Path, suites: &[&str]) -> Result<PrivateApt> {
        Self::of(dir, suites, None)
    }

    /// The same for packages of an architecture, as Debian names it; `None`: this machine's own. A suite
    /// whose name ends in `-security` is looked for on the server of that archive.
    pub(crate) fn of(dir: &Path, suites: &[&str], architecture: Option<&str>) -> Result<PrivateApt> {
        let sources = sources(suites, &server("Debian")?, || server("Debian-Security"))?;
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("sources.list"), sources)?;
        let debs = dir.join("debs");
        let dir = dir.display();
        let mut options = vec![
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
        if let Some(name) = architecture {
            options.extend([format!("APT::Architecture={name}"), format!("APT::Architectures={name}")]);
        }
        let apt = PrivateApt { options, debs };
        let label = format!("reading what Debian's {} have", suites.join(", "));
        cmd::progress(&label, apt.command("apt-get", &["update"]).arg("--yes"))?;
        Ok(apt)
    }

    /// What the suites have of a package.
    pub(crate) fn candidates(&self, package: &str) -> Result<Vec<Candidate>> {
        let found = cmd::output(&mut self.command("apt-cache", &["madison", package]))?;
        Ok(found.lines().filter_map(candidate).collect())
    }

    /// The packages of exactly one version that a package of a version depends on, as `name=version`.
    pub(crate) fn exact_dependencies(&self, package: &str) -> Result<Vec<String>> {
        let shown = cmd::output(&mut self.command("apt-cache", &["show", package]))?;
        Ok(exact_dependencies(&shown))
    }

    /// Downloads packages (`name`, `name=version` or `name/suite`) and unpacks them into a directory.
    pub(crate) fn unpack(&self, label: &str, packages: &[String], root: &Path) -> Result<()> {
        cmd::progress(label, self.command("apt-get", &["download"]).args(packages).current_dir(&self.debs))?;
        for package in fs::read_dir(&self.debs)? {
            cmd::run(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(root))?;
        }
        Ok(())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option])).args(arguments);
        command
    }
}

/// The lines for apt. The server of the security archive is asked for where a suite is there.
fn sources(suites: &[&str], server: &str, security: impl Fn() -> Result<String>) -> Result<String> {
    let line = |suite: &&str| {
        let server = if suite.ends_with("-security") { security()? } else { server.to_owned() };
        Ok(format!("deb [signed-by={KEYRING}] {server} {suite} main\n"))
    };
    suites.iter().map(line).collect()
}

/// The server that the machine's own Debian sources name for an archive: `Debian`, or `Debian-Security`.
pub(crate) fn server(archive: &str) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    first_debian(&cmd::output(&mut command)?, archive).with_context(|| {
        format!("apt's sources name no server of the archive {archive}, where other suites would be found")
    })
}

/// The address of the first line that is Debian's archive of this name.
fn first_debian(lines: &str, archive: &str) -> Option<String> {
    let begin = format!("Debian {archive} ");
    lines.lines().find_map(|line| line.strip_prefix(&begin)).map(str::to_owned)
}

/// A line `PACKAGE | VERSION | SERVER SUITE/main amd64 Packages`.
fn candidate(line: &str) -> Option<Candidate> {
    let mut columns = line.split('|').map(str::trim).skip(1);
    let version = columns.next()?.to_owned();
    let suite = columns.next()?.split(' ').find_map(|word| word.strip_suffix("/main"))?.to_owned();
    Some(Candidate { version, suite })
}

/// The dependencies of the form `name (= version)` in what `apt-cache show` prints.
fn exact_dependencies(shown: &str) -> Vec<String> {
    let line = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let exact = |dependency: &str| {
        let (name, version) = dependency.trim().split_once(" (= ")?;
        Some(format!("{name}={}", version.strip_suffix(')')?))
    };
    line.split(',').filter_map(exact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_name_version_and_suite() {
        let found = candidate("containerd | 2.3.1-1 | http://a/debian sid/main amd64 Packages").unwrap();
        assert_eq!((found.version.as_str(), found.suite.as_str()), ("2.3.1-1", "sid"));
    }

    #[test]
    fn dependencies_of_one_version_are_told_from_others() {
        let shown = "Package: linux-image-amd64\nDepends: linux-image-7.3-amd64 (= 7.3.4-1), kmod, linux-base (>= 4)\n";
        assert_eq!(exact_dependencies(shown), ["linux-image-7.3-amd64=7.3.4-1"]);
        assert_eq!(exact_dependencies("Package: a\n"), [""; 0]);
    }

    #[test]
    fn debians_own_archive_is_told_from_others() {
        let lines = "Debian Debian-Security http://a/debian-security/\n. . http://b/\nDebian Debian http://a/debian/\n";
        assert_eq!(first_debian(lines, "Debian").as_deref(), Some("http://a/debian/"));
        assert_eq!(first_debian(lines, "Debian-Security").as_deref(), Some("http://a/debian-security/"));
        assert_eq!(first_debian("Ubuntu Ubuntu http://a/ubuntu/\n", "Debian"), None);
        let lines = sources(&["a", "a-security"], "main:", || Ok("security:".into())).unwrap();
        let brief: Vec<_> =
            lines.lines().filter_map(|line| line.split_once("] ")).map(|(_, end)| end).collect();
        assert_eq!(brief, ["main: a main", "security: a-security main"]);
    }
}
