//! `cargo xtask build-ebpf`, and the builds that `test` and `demo` start from.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::workspace::Workspace;
use crate::{cmd, ebpf, setup};

/// Builds the kernel programs and says where the object is.
pub(crate) fn build_ebpf(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, &["toolchain"])?;
    let object = ebpf::build_object(&workspace.root).map_err(|message| anyhow!(message))?;
    println!("{}", object.display());
    Ok(())
}

/// Builds libraries, binaries and tests of user space, once and for all tiers, and returns where the binaries
/// are.
///
/// One build with `--all-targets` resolves the features of dependencies once: tests that cargo compiles later
/// find everything ready, and the binaries that they start as processes are never older than they are.
pub(crate) fn build_all(workspace: &Workspace) -> Result<PathBuf> {
    cmd::progress(
        "building user space, kernel programs and tests",
        workspace.cargo().args(["build", "--all-targets"]),
    )?;
    Ok(workspace.target.join("debug"))
}

/// Builds the binaries of these packages alone, and returns where they are.
pub(crate) fn build_binaries(workspace: &Workspace, packages: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--bins"]).args(packages.iter().flat_map(|package| ["--package", package]));
    cmd::progress("building what the demo needs, kernel programs included", &mut cargo)?;
    Ok(workspace.target.join("debug"))
}
