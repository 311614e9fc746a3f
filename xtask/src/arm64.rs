//! User space for arm64, compiled on this machine: for `cargo xtask dist --arch arm64` and for a guest.
//!
//! Debian's rustc of this machine compiles, with the standard library of the same package for arm64 and
//! Debian's cross linker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cmd;
use crate::debian::PrivateApt;
use crate::workspace::Workspace;

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Runs a program of another architecture on this kernel; Debian's package qemu-user-static.
const EMULATOR: &str = "/usr/bin/qemu-aarch64-static";

/// What is for arm64 on this machine: the standard library, and busybox.
pub(crate) struct Foreign(PathBuf);

impl Foreign {
    /// Fetched once for each version of the compiler.
    pub(crate) fn fetched(workspace: &Workspace) -> Result<Foreign> {
        let mut query = Command::new("dpkg-query");
        let version = cmd::output(query.args(["--show", "--showformat=${Version}", "rustc-web"]))?;
        let parent = workspace.cache.join("arm64");
        let place = parent.join(version.trim());
        if !place.exists() {
            fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
            let scratch = tempfile::tempdir_in(&parent).context("cannot make a directory to unpack in")?;
            let suites = ["bookworm", "bookworm-security", "trixie", "trixie-security"];
            let apt = PrivateApt::of(scratch.path(), &suites, Some("arm64"))?;
            let library = format!("libstd-rust-web-dev={}", version.trim());
            let unpacked = scratch.path().join("root");
            apt.unpack(
                "downloading Rust's library for arm64",
                &[library, "busybox-static".into()],
                &unpacked,
            )?;
            // What runs at compile time is this machine's.
            let own = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            let link = unpacked.join("usr/lib/rustlib").join(&own);
            std::os::unix::fs::symlink(Path::new("/usr/lib/rustlib").join(&own), link)?;
            fs::rename(&unpacked, &place)
                .with_context(|| format!("cannot move Rust's library to {}", place.display()))?;
        }
        Ok(Foreign(place))
    }

    /// Newer suites have no `/bin` of its own.
    pub(crate) fn busybox(&self) -> PathBuf {
        let [old, new] = ["bin/busybox", "usr/bin/busybox"].map(|path| self.0.join(path));
        if old.exists() { old } else { new }
    }

    /// The tool and the plugin, static, as they are shipped; where they are.
    pub(crate) fn build(&self, workspace: &Workspace) -> Result<PathBuf> {
        let target = workspace.target.join("arm64");
        let upper = TRIPLE.to_uppercase().replace('-', "_");
        let sysroot = self.0.join("usr");
        let flags = format!("--sysroot {} -C target-feature=+crt-static", sysroot.display());
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--release", "--target", TRIPLE, "--bins", "--target-dir"]).arg(&target);
        cargo.args(["--package", "redirect-tool", "--package", "redirect-cni"]);
        cargo.env("RUSTC", "/usr/bin/rustc");
        cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), LINKER);
        cargo.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags);
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"] {
            cargo.env_remove(variable);
        }
        cmd::progress("building the tool and the plugin for arm64, which takes some minutes", &mut cargo)?;
        Ok(target.join(TRIPLE).join("release"))
    }
}

/// Starts a program for arm64 with arguments, the plugin with the verb VERSION, and returns what it prints.
pub(crate) fn output(program: &Path, arguments: &[&str]) -> Result<String> {
    ensure!(program.is_file(), "there is no {}", program.display());
    cmd::output(
        Command::new(EMULATOR)
            .arg(program)
            .args(arguments)
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::null()),
    )
}
