//! The kernel for arm64: user space compiled for it, and a guest that has nothing else but busybox.
//!
//! Debian's rustc of this machine compiles, with the standard library of the same package for arm64. The
//! guest loads the programs, asks the doctor, tries every verdict in a scratch pod, and runs the plugin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::guest::{self, Report};
use super::kernels::Kernel;
use super::root;
use crate::debian::PrivateApt;
use crate::workspace::Workspace;
use crate::{cmd, setup};

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// What a scratch pod needs: its interfaces, the guard's filter, and who listens.
const MODULES: [&str; 5] = ["veth", "sch_ingress", "cls_bpf", "tcp_diag", "udp_diag"];
/// What the guest runs; the name is the job's.
const JOBS: [(&str, &str); 5] = [
    ("tool::install", "redirect install"),
    ("tool::doctor", "redirect doctor"),
    ("tool::verify", "redirect verify"),
    ("tool::uninstall", "redirect uninstall && [ -z \"$(ls /sys/fs/bpf)\" ]"),
    ("tool::plugin", "CNI_COMMAND=VERSION redirect-cni </dev/null"),
];
/// How long the guest may take.
const LIMIT: &str = "600";

/// Compiles, boots, and tries.
pub(super) fn boot(workspace: &Workspace, kernel: &Kernel) -> Result<Report> {
    setup::ensure(workspace, &["arm64"])?;
    let files = kernel.files(workspace)?;
    let foreign = Foreign::fetched(workspace)?;
    let binaries = foreign.build(workspace)?;
    println!("\n==> Linux {}: {} jobs", kernel.name, JOBS.len());
    let scratch = tempfile::tempdir().context("cannot make a directory for the guest")?;
    let dir = scratch.path().join("root");
    for sub in ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "modules"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::copy(foreign.busybox(), dir.join("bin/busybox")).context("cannot copy busybox for arm64")?;
    std::os::unix::fs::symlink("busybox", dir.join("bin/sh"))?;
    for name in ["redirect", "redirect-cni"] {
        fs::copy(binaries.join(name), dir.join("bin").join(name)).with_context(|| format!("copy {name}"))?;
    }
    fs::write(dir.join("modules/order"), root::modules(&files, &MODULES, &dir.join("modules"))?)?;
    root::write_script(&dir.join("init"), include_str!("arm64.sh"))?;
    let line = |(label, command): (&str, &str)| format!("{label} {command}\n");
    fs::write(dir.join("jobs"), JOBS.map(line).concat())?;
    let archive = root::pack(&dir, scratch.path())?;
    let mut qemu = Command::new("timeout");
    qemu.args(["--kill-after=5", LIMIT, "qemu-system-aarch64", "-M", "virt", "-m", "1024"]);
    qemu.args(["-cpu", "max,pauth-impdef=on", "-accel", "tcg,thread=multi", "-smp"])
        .arg(kernel.cpus.to_string());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    qemu.args(["-append", "console=ttyAMA0 panic=-1 loglevel=1"]);
    qemu.arg("-kernel").arg(&files.image).arg("-initrd").arg(archive);
    guest::watch(kernel, qemu, JOBS.len())
}

/// What is for arm64 on this machine: the standard library, and busybox.
struct Foreign(PathBuf);

impl Foreign {
    /// Fetched once for each version of the compiler.
    fn fetched(workspace: &Workspace) -> Result<Foreign> {
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
    fn busybox(&self) -> PathBuf {
        let [old, new] = ["bin/busybox", "usr/bin/busybox"].map(|path| self.0.join(path));
        if old.exists() { old } else { new }
    }

    /// The tool and the plugin, static, without symbols; where they are.
    fn build(&self, workspace: &Workspace) -> Result<PathBuf> {
        let target = workspace.target.join("arm64");
        let upper = TRIPLE.to_uppercase().replace('-', "_");
        let sysroot = self.0.join("usr");
        let flags = format!("--sysroot {} -C target-feature=+crt-static", sysroot.display());
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--target", TRIPLE, "--bins", "--target-dir"]).arg(&target);
        cargo.args(["--package", "redirect-tool", "--package", "redirect-cni"]);
        cargo.env("RUSTC", "/usr/bin/rustc").env("CARGO_PROFILE_DEV_STRIP", "symbols");
        cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), LINKER);
        cargo.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), flags);
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"] {
            cargo.env_remove(variable);
        }
        cmd::progress("building the tool and the plugin for arm64, which takes some minutes", &mut cargo)?;
        Ok(target.join(TRIPLE).join("debug"))
    }
}
