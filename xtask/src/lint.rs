//! `cargo xtask lint`: format and clippy for user space, then the kernel programs on their own.
//!
//! One pass over the whole workspace would unify the features of `redirect-common` and pull `std` into the kernel
//! programs, so there are two.

use anyhow::{Result, anyhow};

use crate::workspace::Workspace;
use crate::{cmd, ebpf, setup};

/// Runs all lints; the first that finds something ends the run.
pub(crate) fn main(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, &["toolchain"])?;
    check(workspace)
}

/// The lints without the set-up.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    cmd::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    let user_space = ["clippy", "--workspace", "--exclude", "redirect-ebpf", "--all-targets"];
    clippy(workspace, "clippy for user space", &user_space)?;
    // clippy has to match the compiler that has core's source, which the packaged one has no clippy for. Checked for
    // the host, the programs meet every lint but those about the target; the build that follows meets rustc's own.
    clippy(workspace, "clippy for the kernel programs", &["clippy", "--package", "redirect-ebpf"])?;
    kernel_programs_build_without_warnings(workspace)
}

fn clippy(workspace: &Workspace, label: &str, arguments: &[&str]) -> Result<()> {
    cmd::progress(label, workspace.cargo().args(arguments).args(["--", "--deny", "warnings"]))
}

fn kernel_programs_build_without_warnings(workspace: &Workspace) -> Result<()> {
    let toolchain = ebpf::find_toolchain(&workspace.root).map_err(|message| anyhow!(message))?;
    let mut cargo = ebpf::cargo_build(&workspace.root, &toolchain).map_err(|message| anyhow!(message))?;
    // cargo repeats the warnings of what is up to date, so this needs no build of its own.
    cargo.args(["-Z", "warnings"]).env("CARGO_BUILD_WARNINGS", "deny");
    cmd::progress("kernel programs build without warnings", &mut cargo)
}
