//! `cargo xtask demo`: a small mesh on this machine, from nothing to a table of what happened.

use std::ffi::OsString;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{build, cmd, setup};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Istio's example application in containers of a real containerd, in place of the small mesh
    #[arg(long)]
    bookinfo: bool,
    /// Handed on to the demo
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// What a demonstration needs, and no more: from a clone to its table it is mostly compiling.
struct Demo {
    /// The binary's name.
    name: &'static str,
    groups: &'static [&'static str],
    /// Whose binaries it starts, its own among them.
    packages: &'static [&'static str],
}

const MESH: Demo = Demo {
    name: "demo",
    groups: &["toolchain", "mesh"],
    packages: &["redirect-demo", "redirect-cni", "redirect-harness"],
};
const BOOKINFO: Demo = Demo {
    name: "bookinfo",
    groups: &["toolchain", "mesh", "containerd"],
    packages: &["redirect-bookinfo", "redirect-cni", "redirect-tool"],
};

/// Sets up, builds, and becomes the demo that was asked for.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    let Demo { name, groups, packages } = if options.bookinfo { BOOKINFO } else { MESH };
    setup::ensure(workspace, groups)?;
    let binaries = build::build_binaries(workspace, packages)?;
    let mut demo = workspace.command(binaries.join(name));
    cmd::become_it(demo.args(&options.arguments).env("REDIRECT_BIN_DIR", &binaries))
}
