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

/// Sets up, builds, and becomes the demo that was asked for.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    let (name, groups): (_, &[&str]) = match options.bookinfo {
        true => ("bookinfo", &["toolchain", "mesh", "containerd"]),
        false => ("demo", &["toolchain", "mesh"]),
    };
    setup::ensure(workspace, groups)?;
    let binaries = build::build_all(workspace)?;
    let mut demo = workspace.command(binaries.join(name));
    cmd::become_it(demo.args(&options.arguments).env("REDIRECT_BIN_DIR", &binaries))
}
