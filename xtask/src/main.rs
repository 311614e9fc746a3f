//! `cargo xtask`: everything a developer does with this repository. One file per command; this one only
//! chooses.
//!
//! What must be installed is listed in `groups.rs`, what is tested in `tiers.rs`.

#![forbid(unsafe_code)]

mod apt;
mod arm64;
mod bench;
mod build;
mod chroot;
mod cmd;
mod debian;
mod demo;
mod deny;
mod deploy;
mod dist;
mod ebpf;
mod envoy;
mod fuzz;
mod groups;
mod kubectl;
mod lint;
mod setup;
mod soak;
mod suites;
mod tally;
mod test;
mod tidy;
mod tiers;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set up, build, try, test, measure and package redirect-cni
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, step by step
    Setup(setup::Options),
    /// Compile the kernel programs
    BuildEbpf,
    /// Make a small mesh on this machine and show that it works
    Demo(demo::Options),
    /// Run the tests
    Test(test::Options),
    /// Measure against iptables and against no redirection
    Bench(bench::Options),
    /// Make what is shipped in target/dist: static binaries, packages, image, chart
    Dist(dist::Options),
    /// Feed what reads other people's input with libFuzzer
    Fuzz(fuzz::Options),
    /// Check format, clippy and warnings
    Lint,
    /// Check the house rules about files
    Tidy,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup(options) => setup::main(&workspace, options, &test::groups_of_a_plain_run())?,
        Task::BuildEbpf => build::build_ebpf(&workspace)?,
        Task::Demo(options) => demo::main(&workspace, options)?,
        Task::Test(options) => return test::main(&workspace, options),
        Task::Bench(options) => bench::main(&workspace, options)?,
        Task::Dist(options) => dist::main(&workspace, options)?,
        Task::Fuzz(options) => fuzz::main(&workspace, options)?,
        Task::Lint => lint::main(&workspace)?,
        Task::Tidy => tidy::check(&workspace)?,
    }
    Ok(ExitCode::SUCCESS)
}
