//! `cargo xtask lint`: format, other people's crates, and clippy for user space; then the kernel programs on
//! their own.
//!
//! One pass over the whole workspace would unify the features of `redirect-common` and pull `std` into the
//! kernel programs, so there are two.

use std::process::Command;

use anyhow::{Result, anyhow};

use crate::workspace::Workspace;
use crate::{cmd, deny, ebpf, setup};

/// Runs all lints; the first that finds something ends the run.
pub(crate) fn main(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, &["toolchain", "lint"])?;
    check(workspace)
}

/// The lints without the set-up.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    cmd::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    deny::check(workspace)?;
    let mut user_space = workspace.cargo();
    user_space.args([
        "clippy",
        "--workspace",
        "--exclude",
        "redirect-ebpf",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]);
    cmd::progress("clippy for user space", &mut user_space)?;
    cmd::progress("clippy for the kernel programs", &mut clippy_for_kernel_programs(workspace))?;
    kernel_programs_build_without_warnings(workspace)
}

/// clippy must be of the same release as the compiler that has the source of `core`, and the packaged
/// compiler comes without. So the programs are checked for the host, where they meet every lint but those
/// about the target; the release profile, because without `std` panics must abort.
fn clippy_for_kernel_programs(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo
        .args(["clippy", "--release", "--package", "redirect-ebpf", "--target-dir"])
        .arg(ebpf::target_dir(&workspace.root))
        .args(["--", "--deny", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1");
    cargo
}

fn kernel_programs_build_without_warnings(workspace: &Workspace) -> Result<()> {
    let toolchain = ebpf::find_toolchain(&workspace.root).map_err(|message| anyhow!(message))?;
    let mut cargo = ebpf::cargo_build(&workspace.root, &toolchain).map_err(|message| anyhow!(message))?;
    // cargo repeats the warnings of what is up to date, so this needs no build of its own.
    cargo.args(["-Z", "warnings"]).env("CARGO_BUILD_WARNINGS", "deny");
    cmd::progress("kernel programs build without warnings", &mut cargo)
}
