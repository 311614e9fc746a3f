//! Set-up steps for the BPF target: the source of `core`, and bpf-linker.

use std::env;
use std::fs;

use anyhow::{Context, Result};

use crate::apt::{self, Package, deb};
use crate::workspace::Workspace;
use crate::{cmd, ebpf};

/// The release of bpf-linker that fits LLVM 22, which both compilers of ours carry.
const BPF_LINKER: &str = "0.13.0";
/// Where Debian puts LLVM 22.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Debian's compiler for web browsers is as recent as ours, and its source is a package too, without rustup.
const DEBIAN_RUST: [Package; 2] = [
    deb("rustc-web", "/usr/bin/rustc"),
    deb("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
];

/// Whether some compiler can build `core` for the BPF target.
pub(crate) fn has_core_source(workspace: &Workspace) -> bool {
    ebpf::find_toolchain(&workspace.root).is_ok()
}

/// Adds the source to the workspace's toolchain, else installs Debian's compiler with its own.
pub(crate) fn add_core_source(workspace: &Workspace) -> Result<()> {
    if may_use_rustup() {
        let mut rustup = workspace.command("rustup");
        match cmd::progress("adding rust-src to the toolchain", rustup.args(["component", "add", "rust-src"]))
        {
            Ok(()) => return Ok(()),
            Err(error) => {
                eprintln!("warning: {error:#}\nwarning: trying the distribution's compiler instead")
            }
        }
    }
    apt::install(&DEBIAN_RUST)
        .context("neither rustup nor apt brought a compiler with the source of its core library")
}

/// rustup fetches the components that rust-toolchain.toml names by itself, unless it was told to fetch
/// nothing.
fn may_use_rustup() -> bool {
    env::var_os("RUSTUP_AUTO_INSTALL").is_none_or(|value| value != "0")
}

/// Whether bpf-linker was built before, in the release that we want: cargo keeps a list of what it installed
/// where.
pub(crate) fn has_bpf_linker(workspace: &Workspace) -> bool {
    let tools = workspace.cache.join("tools");
    let installed = fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
    installed.contains(&format!("\"bpf-linker {BPF_LINKER} ")) && tools.join("bin/bpf-linker").exists()
}

/// Compiles bpf-linker into the cache; about a minute on two cores.
pub(crate) fn build_bpf_linker(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(workspace.cache.join("tools"))
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env_remove("CARGO_TARGET_DIR");
    cmd::progress(&format!("building bpf-linker {BPF_LINKER}, which takes a minute or two"), &mut cargo)
}
