//! One boot: an initial root file system made for the kernel, qemu, and what the guest says on its console.
//!
//! The guest sees this machine's files read-only, below a layer of its own in memory, so it runs the very
//! binaries that were built here. It has no network but what the tests make.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::jobs::Job;
use super::kernels::{Files, Kernel};
use super::root;
use crate::cmd;

/// What the host's files need before the guest has them.
const MODULES: [&str; 4] = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];
/// How long a guest may take to start and to stop, besides its jobs.
const BOOT: Duration = Duration::from_secs(180);

/// What became of a job.
pub(crate) struct Outcome {
    /// Its label.
    pub(crate) label: String,
    /// Its exit status; 99: the kernel has warned.
    pub(crate) status: i32,
    pub(crate) took: Duration,
}

/// What a guest did.
pub(crate) struct Report {
    /// `uname -r`.
    pub(crate) release: String,
    /// Seconds from the kernel's start to the first job.
    pub(crate) boot: f64,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Boots a kernel and runs jobs in it, one after the other. Each outcome is printed as it comes.
pub(crate) fn run(kernel: &Kernel, files: &Files, jobs: &[Job]) -> Result<Report> {
    let scratch = tempfile::tempdir().context("cannot make a directory for the guest")?;
    let initrd = initial_root(scratch.path(), files, jobs)?;
    let limit = BOOT + jobs.iter().map(|job| job.limit).sum::<Duration>();
    let mut qemu = Command::new("timeout");
    qemu.arg("--kill-after=5").arg(limit.as_secs().to_string());
    qemu.args(["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048"]);
    qemu.arg("-smp").arg(kernel.cpus.to_string());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
    qemu.args(["-append", "console=ttyS0 panic=-1 loglevel=1"]);
    qemu.arg("-kernel").arg(&files.image).arg("-initrd").arg(initrd);
    watch(kernel, qemu, jobs.len())
}

/// Starts a guest and reads its console to the end; as many jobs as are expected must have come to an end.
pub(super) fn watch(kernel: &Kernel, mut qemu: Command, expected: usize) -> Result<Report> {
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {}", cmd::line(&qemu)))?;
    let console = child.stdout.take().context("the console is a pipe")?;
    let (report, whole) = listen(BufReader::new(console));
    child.wait().context("cannot wait for qemu")?;
    match report {
        Some(report) if report.outcomes.len() == expected => Ok(report),
        _ => bail!("the guest with Linux {} did not come to its end; its console:\n{whole}", kernel.name),
    }
}

/// Reads the console to its end: the report, and the last lines of all.
fn listen(console: impl std::io::BufRead) -> (Option<Report>, String) {
    let (mut report, mut output, mut all) = (None, String::new(), Vec::new());
    for line in console.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if let Some(text) = line.strip_prefix("@| ") {
            output += &format!("    {text}\n");
        } else if let Some(shown) = line.strip_prefix("@= ") {
            println!("    {shown}");
        } else if let Some(said) = line.strip_prefix("@@ ") {
            hear(said, &mut report, &mut output);
        }
        all.push(line);
    }
    let tail = all.len().saturating_sub(60);
    (report, all[tail..].join("\n"))
}

/// A line of guest.sh.
fn hear(said: &str, report: &mut Option<Report>, output: &mut String) {
    let words: Vec<_> = said.split(' ').collect();
    match (words.as_slice(), report) {
        (["up", release, boot], report) => {
            println!("    up after {boot} s: Linux {release}");
            let boot = boot.parse().unwrap_or_default();
            *report = Some(Report { release: (*release).to_owned(), boot, outcomes: Vec::new() });
        }
        (["job", label, status, millis], Some(report)) => {
            let took = Duration::from_millis(millis.parse().unwrap_or_default());
            let status = status.parse().unwrap_or(-1);
            let output = std::mem::take(output);
            let word = if status == 0 { "ok" } else { "FAILED" };
            println!("    {label} ... {word} ({:.1} s)", took.as_secs_f64());
            if status != 0 {
                print!("{output}");
            }
            report.outcomes.push(Outcome { label: (*label).to_owned(), status, took });
        }
        (["trouble", ..], _) => println!("    {said}"),
        _ => {}
    }
}

/// The initial root file system: busybox, some modules, our two scripts and the jobs.
fn initial_root(scratch: &Path, files: &Files, jobs: &[Job]) -> Result<PathBuf> {
    let root = scratch.join("root");
    for dir in ["bin", "proc", "sys", "dev", "modules", "guest"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("cannot copy busybox")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    fs::write(root.join("modules/order"), root::modules(files, &MODULES, &root.join("modules"))?)?;
    root::write_script(&root.join("init"), include_str!("init.sh"))?;
    root::write_script(&root.join("guest/guest.sh"), include_str!("guest.sh"))?;
    fs::write(root.join("guest/harmless"), include_str!("harmless"))?;
    fs::write(root.join("guest/modules"), files.modules.display().to_string())?;
    fs::write(root.join("guest/jobs"), jobs.iter().map(Job::line).collect::<String>())?;
    root::pack(&root, scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read_to_a_report() {
        let console = "[ 1.0] noise\r\n@@ up 6.1.0 3.20\r\n@| why\r\n@@ job guard::a 101 1500\r\n@@ job guard::b 0 20\n";
        let report = listen(console.as_bytes()).0.unwrap();
        assert_eq!((report.release.as_str(), report.outcomes.len()), ("6.1.0", 2));
        let brief = |outcome: &Outcome| (outcome.status, outcome.took.as_millis());
        assert_eq!(report.outcomes.iter().map(brief).collect::<Vec<_>>(), [(101, 1500), (0, 20)]);
        assert!(listen("Kernel panic".as_bytes()).0.is_none());
    }
}
