//! `cargo xtask bench`: measures the release binaries side by side with iptables and with no redirection.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{cmd, dist, setup};

/// A tmpfs on every Linux.
const MEMORY: &str = "/dev/shm";

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Handed on to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Sets up, builds what is shipped and the tool that measures it, and becomes that tool.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, &["toolchain", "mesh", "oracle", "bench"])?;
    let binaries = dist::binaries(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--profile", "tool", "--package", "redirect-bench"]);
    cmd::progress("building the benchmark", &mut cargo)?;
    let mut bench = workspace.command(workspace.target.join("tool/bench"));
    // State goes where a node has it, to memory: /run is a tmpfs there, a directory for temporary files may
    // be on disk.
    if Path::new(MEMORY).is_dir() {
        bench.env("TMPDIR", MEMORY);
    }
    cmd::become_it(bench.args(&options.arguments).env("REDIRECT_BIN_DIR", &binaries))
}
