//! Where things are: the repository, cargo's output, and the cache that outlives `cargo clean`.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::ebpf;

/// The paths that every command starts from.
pub(crate) struct Workspace {
    /// The top of the repository.
    pub(crate) root: PathBuf,
    /// cargo's output directory.
    pub(crate) target: PathBuf,
    /// Built and downloaded tools: `$REDIRECT_CNI_CACHE`, else `redirect-cni` in the user's cache directory.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the paths of the repository that this binary was built in.
    pub(crate) fn find() -> Result<Self> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask lies at the top of the repository")?.to_path_buf();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        let cache = ebpf::cache_dir().context(
            "no place for tools: set HOME, or REDIRECT_CNI_CACHE to a directory that may grow to 1 GB",
        )?;
        let cache = env::current_dir()?.join(cache);
        Ok(Self { root, target, cache })
    }

    /// A command that runs at the top of the repository and sees the same cache as we do.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        // Only a relative path reads differently over there. Set without need, the variable would make cargo
        // take the build of redirect-user, whose script depends on it, for out of date.
        if env::var_os(ebpf::CACHE_VARIABLE).is_some_and(|set| !set.is_empty()) {
            command.env(ebpf::CACHE_VARIABLE, &self.cache);
        }
        command
    }

    /// cargo itself, with the toolchain that runs us.
    pub(crate) fn cargo(&self) -> Command {
        self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }
}

/// Whether we act as the superuser. The owner of `/proc/self` is the effective user of the process.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
