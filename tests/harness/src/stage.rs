//! A stage: mount, network and process namespaces in which a demonstration runs, so that it cannot touch the
//! machine that it runs on and nothing of it stays behind, however it ends.
//!
//! Killing one process ends everything on the stage and takes its mounts, interfaces and attached programs
//! along. What is left is a directory and a branch of the cgroup tree, which the process outside removes.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

use crate::cgroup::Cgroup;
use crate::node::{MachineLock, PREFIX};
use crate::residue::Residue;

/// Runs the calling program once more, on a stage, and waits for its end. It gets the arguments that
/// `arguments` makes of an empty directory for mounts and files and of a cgroup that plays the root of a
/// node's hierarchy.
///
/// SIGINT, SIGTERM and SIGHUP end it; the exit code is then 128 and the signal's number.
///
/// # Errors
/// If the stage cannot be made, or cannot be removed.
pub fn run(name: &str, arguments: impl FnOnce(&Path, &Path) -> Vec<OsString>) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "{name} makes namespaces and loads programs: run it as root");
    // Before anything is made, so that no signal can come between making and removing it.
    signals().thread_block().context("blocking signals")?;
    let dir = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{name}-"))
        .tempdir()
        .context("making a directory")?;
    let cgroup = Cgroup::create(Cgroup::mount_point().join(format!("{PREFIX}{name}-{}", std::process::id())));
    let status = start(arguments(dir.path(), cgroup.path())).and_then(|child| watch(name, child));
    Cgroup::remove(cgroup.path())
        .with_context(|| format!("removing the cgroup {}", cgroup.path().display()))?;
    dir.close().context("removing the directory of the stage")?;
    status
}

/// As [`run`], for a test: no other test runs beside it, and afterwards the machine must be as before.
///
/// # Errors
/// As [`run`]; the test fails on the stage, or leaves something behind.
pub fn test(name: &str, arguments: impl FnOnce(&Path, &Path) -> Vec<OsString>) -> Result<()> {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let code = run(name, arguments)?;
    // Links end with the last reference to their programs, some time after the processes.
    let left = before.left_over();
    ensure!(left.is_empty(), "the test left behind:\n  {}", left.join("\n  "));
    // `ExitCode` cannot be compared; its text can.
    ensure!(format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS), "see above");
    Ok(())
}

/// To be called first on the stage, while there is one thread: lets signals through again, which [`run`] has
/// blocked and processes inherit.
///
/// # Errors
/// If the kernel refuses.
pub fn enter() -> Result<()> {
    signals().thread_unblock().context("unblocking signals")
}

fn start(arguments: Vec<OsString>) -> Result<Child> {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.arg("--").arg(std::env::current_exe()?).args(arguments);
    command.spawn().context("starting `unshare` (Debian package util-linux)")
}

/// The signals that end a stage, and the one that says that it has ended; blocked, so that they can be waited
/// for.
fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD])
}

/// Waits for the end of what runs on the stage, or ends it when somebody asks for that.
fn watch(name: &str, mut child: Child) -> Result<ExitCode> {
    loop {
        let signal = signals().wait()?;
        if signal == Signal::SIGCHLD {
            if let Some(status) = child.try_wait()? {
                return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            continue;
        }
        child.kill()?;
        child.wait()?;
        eprintln!("{name}: ended by {signal}, removing what it made");
        return Ok(ExitCode::from(128 + u8::try_from(signal as i32)?));
    }
}
