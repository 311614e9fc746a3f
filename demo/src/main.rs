//! `cargo xtask demo`: a small mesh on this one host, from CNI ADD to CNI DEL, and a table of what everybody
//! saw.
//!
//! Reading order: this file runs the demo on a stage of its own; [`scene`] is what happens inside, step by
//! step; [`pod`] is a pod with its application and sidecar; [`checks`] are the promises beside the requests;
//! [`report`] prints; [`app`] is the application.

mod app;
mod checks;
mod pod;
mod report;
mod scene;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use harness::{MachineLock, progress, stage};

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
        Some(Role::Inside { dir, cgroup }) => {
            stage::enter().and_then(|()| scene::play(dir, cgroup, options.json))
        }
        Some(Role::App { pod, port }) => app::run(pod, *port).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the demo in namespaces of its own and removes what it made, however it ends.
fn outside(options: &Options) -> Result<ExitCode> {
    let lock =
        (!options.locked).then(|| progress::step("waiting until no test runs", || Ok(MachineLock::take())));
    let _lock = lock.transpose()?;
    stage::run("demo", |dir, cgroup| {
        let json = options.json.then(|| OsString::from("--json"));
        json.into_iter().chain(["inside".into(), dir.into(), cgroup.into()]).collect()
    })
}
