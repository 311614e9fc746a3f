//! `cargo xtask demo`: a small mesh on this machine, from nothing to a table of what happened.

use std::ffi::OsString;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{build, cmd, setup};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Handed on to the demo
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Sets up, builds, and becomes the demo.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, &["toolchain", "mesh"])?;
    let binaries = build::build_all(workspace)?;
    let mut demo = workspace.command(binaries.join("demo"));
    cmd::become_it(demo.args(&options.arguments).env("REDIRECT_BIN_DIR", &binaries))
}
