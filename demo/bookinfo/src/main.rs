//! `cargo xtask demo --bookinfo`: Istio's Bookinfo on this one machine, on a real container runtime, with
//! real Envoys and mutual TLS between them, and a page to open in a browser.
//!
//! Reading order: this file runs everything in namespaces of its own and cleans up after it, however it
//! ends; [`scene`] is what happens, step by step; [`plan`] is what Bookinfo consists of, [`node`] a node
//! with containerd, [`mesh`] the pods on it ([`pods`] specifies them, [`files`], [`proxy`] and [`pki`] are
//! what their Envoys are given); [`visit`] opens the page, [`trips`], [`log`] and [`counts`] find out who saw
//! what, [`checks`] and [`drill`] are the promises besides ([`got`] is what a single request got); [`door`]
//! leads into the node; [`report`] prints. The applications are the binary `bookinfo-services`.

mod check;
mod checks;
mod counts;
mod door;
mod drill;
mod files;
mod got;
mod log;
mod mesh;
mod node;
mod pki;
mod plan;
mod pods;
mod proxy;
mod report;
mod scene;
mod trips;
mod visit;

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use harness::runtime::runc;
use harness::{MachineLock, progress, stage};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::scene::Shown;

/// Bookinfo on this one machine: pods, what their sidecars log, and the page
#[derive(Debug, Parser)]
#[command(name = "bookinfo")]
struct Options {
    /// End when standard input does, at once on a terminal, instead of at Ctrl-C
    #[arg(long, global = true)]
    once: bool,
    /// Print what was found as JSON, and, at the end of --once, who counted what since
    #[arg(long, global = true)]
    json: bool,
    /// The port of 127.0.0.1 to open the page at; without it, a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The caller holds the lock that keeps tests apart
    #[arg(long, hide = true)]
    locked: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the demonstration starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    /// A stand-in for runc
    #[command(hide = true, disable_help_flag = true)]
    Runc {
        /// Arguments of runc
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// The demonstration inside its namespaces
    #[command(hide = true)]
    Inside {
        /// An empty directory for mounts and files
        dir: PathBuf,
        /// A cgroup that plays the root of the node's hierarchy
        cgroup: PathBuf,
        /// The descriptor of a listening socket of the machine
        door: RawFd,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.role {
        None => outside(&options),
        Some(Role::Inside { dir, cgroup, door }) => inside(&options, dir, cgroup, *door),
        Some(Role::Runc { arguments }) => runc::become_runc(arguments).map(|()| ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bookinfo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the demonstration in namespaces of its own and removes what it made, however it ends.
fn outside(options: &Options) -> Result<ExitCode> {
    let lock =
        (!options.locked).then(|| progress::step("waiting until no test runs", || Ok(MachineLock::take())));
    let _lock = lock.transpose()?;
    let door = door::bind(options.port)?;
    fcntl(&door, FcntlArg::F_SETFD(FdFlag::empty())).context("letting the door be inherited")?;
    stage::run("bookinfo", |dir, cgroup| {
        let flags = [(options.once, "--once"), (options.json, "--json")];
        let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, flag)| OsString::from(flag));
        let door = door.as_raw_fd().to_string().into();
        flags.chain(["inside".into(), dir.into(), cgroup.into(), door]).collect()
    })
}

/// Plays the demonstration; `door` was inherited.
fn inside(options: &Options, dir: &Path, cgroup: &Path, door: RawFd) -> Result<ExitCode> {
    stage::enter()?;
    // SAFETY: the process outside has opened this descriptor for us, and nothing else in this process uses
    // it.
    let door = unsafe { OwnedFd::from_raw_fd(door) };
    fcntl(&door, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("keeping the door from containers")?;
    scene::play(Shown { once: options.once, json: options.json }, dir, cgroup, TcpListener::from(door))
}
