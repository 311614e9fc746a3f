//! `cargo xtask demo`: a small mesh on this one host, from CNI ADD to CNI DEL, and a table of what everybody saw.
//!
//! Reading order: this file runs the demo in namespaces of its own and cleans up after it, whatever happens;
//! [`scene`] is what happens inside, step by step; [`pod`] is a pod with its application and sidecar; [`checks`] are
//! the promises beside the requests; [`report`] prints; [`app`] is the application.

mod app;
mod checks;
mod pod;
mod progress;
mod report;
mod scene;

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use harness::MachineLock;
use harness::cgroup::Cgroup;
use nix::sys::signal::{SigSet, Signal};
use tempfile::TempDir;

/// A mesh of two pods on this one host: what is sent, and what everybody on the way sees
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Options {
    /// Print what was found as JSON
    #[arg(long, global = true)]
    json: bool,
    /// The caller holds the lock that keeps tests apart
    #[arg(long, hide = true)]
    locked: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the demo starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    /// The demo inside its namespaces
    #[command(hide = true)]
    Inside {
        /// An empty directory for mounts and files
        dir: PathBuf,
        /// A cgroup that plays the root of the node's hierarchy
        cgroup: PathBuf,
    },
    /// The application in a pod
    #[command(hide = true)]
    App {
        /// The pod's name
        pod: String,
        /// The port to serve on
        port: u16,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.role {
        None => outside(&options),
        // The mask is inherited, and what runs inside is stopped with SIGTERM.
        Some(Role::Inside { dir, cgroup }) => {
            Signals::unblock().and_then(|()| scene::play(dir, cgroup, options.json))
        }
        Some(Role::App { pod, port }) => app::run(pod, *port).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the demo in mount, network and process namespaces of its own: killing one process ends everything in them
/// and takes their mounts, interfaces and attached programs along. What is left is a directory and a cgroup.
fn outside(options: &Options) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes namespaces and loads programs: run it as root");
    // Before anything is made, so that no signal can come between making and removing it.
    let signals = Signals::block()?;
    let lock =
        (!options.locked).then(|| progress::step("waiting until no test runs", || Ok(MachineLock::take())));
    let lock = lock.transpose()?;
    let dir =
        tempfile::Builder::new().prefix("redirect-test-demo-").tempdir().context("making a directory")?;
    let cgroup =
        Cgroup::create(Cgroup::mount_point().join(format!("redirect-test-demo-{}", std::process::id())));
    let status = run_inside(&dir, &cgroup, options.json).and_then(|child| signals.watch(child));
    Cgroup::remove(cgroup.path()).context("removing the demo's cgroup")?;
    dir.close().context("removing the demo's directory")?;
    drop(lock);
    status
}

fn run_inside(dir: &TempDir, cgroup: &Cgroup, json: bool) -> Result<Child> {
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
    command.arg("--").arg(std::env::current_exe()?).args(json.then_some("--json"));
    command.arg("inside").arg(dir.path()).arg(cgroup.path());
    command.spawn().context("starting `unshare` (Debian package util-linux)")
}

/// The signals that end the demo, and the one that says that it has ended; blocked, so that they are waited for.
struct Signals {
    set: SigSet,
}

impl Signals {
    fn new() -> Signals {
        Signals { set: SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD]) }
    }

    fn block() -> Result<Signals> {
        let signals = Signals::new();
        signals.set.thread_block().context("blocking signals")?;
        Ok(signals)
    }

    fn unblock() -> Result<()> {
        Signals::new().set.thread_unblock().context("unblocking signals")
    }

    /// Waits for the demo's end, or ends it when somebody asks for that.
    fn watch(&self, mut child: Child) -> Result<ExitCode> {
        loop {
            let signal = self.set.wait()?;
            if signal == Signal::SIGCHLD {
                if let Some(status) = child.try_wait()? {
                    return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
                continue;
            }
            child.kill()?;
            child.wait()?;
            eprintln!("demo: ended by {signal}, everything that it made is removed");
            return Ok(ExitCode::from(128 + u8::try_from(signal as i32)?));
        }
    }
}
