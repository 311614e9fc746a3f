//! The kernel for arm64: user space compiled for it, and a guest that has nothing else but busybox.
//!
//! The guest loads the programs, asks the doctor, tries every verdict in a scratch pod, and runs the plugin.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::guest::{self, Report};
use super::kernels::Kernel;
use super::root;
use crate::arm64::Foreign;
use crate::setup;
use crate::workspace::Workspace;

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
    setup::ensure(workspace, &["arm64", "arm64-vm"])?;
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
