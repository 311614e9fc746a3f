//! `cargo xtask test [TIER..]`: sets up and builds once, runs the tiers, and ends with a table and the
//! totals.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;
use crate::tally::Tally;
use crate::tiers::{Job, TIERS, Tier};
use crate::workspace::{Workspace, is_root};
use crate::{build, setup, soak, vm};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The tiers to run; without names, all that CI runs. After `vm`: the kernels to boot
    tiers: Vec<String>,
    /// For `vm`: every kernel, and all tests that fit into a guest
    #[arg(long)]
    all: bool,
    /// For `vm`: only the few tests of a plain run
    #[arg(long)]
    short: bool,
    /// For `soak`: how long it goes on, in minutes
    #[arg(long)]
    minutes: Option<u32>,
    /// For `soak`: in a virtual machine with this kernel; see `vm`
    #[arg(long, value_name = "KERNEL")]
    within: Option<String>,
    /// Show the tiers and run nothing
    #[arg(long)]
    list: bool,
    /// Handed on to the tests, for example part of a test's name, or --nocapture
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// What became of one tier.
struct Outcome {
    name: &'static str,
    tally: Tally,
    time: Duration,
}

/// Runs the chosen tiers, all of them even if one fails.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if options.list {
        TIERS.iter().for_each(|tier| println!("{:<11} {}", tier.name, tier.about));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(("vm", kernels)) = options.tiers.split_first().map(|(first, rest)| (first.as_str(), rest))
        && (options.all || !kernels.is_empty())
    {
        let also: Vec<_> = options.arguments.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        return vm::main(workspace, kernels, options.short, &also);
    }
    if let Some(kernel) = &options.within {
        ensure!(options.tiers == ["soak"], "--within is for the tier soak alone");
        return vm::soak(workspace, kernel, options.minutes.unwrap_or(3));
    }
    let tiers = chosen(&options.tiers)?;
    let groups: Vec<&str> = groups_of(tiers.iter().copied());
    setup::ensure(workspace, &groups)?;
    let has_tests = |tier: &&Tier| tier.jobs.iter().any(|job| matches!(job, Job::Tests(_)));
    let binaries = match tiers.iter().any(has_tests) {
        true => build::build_all(workspace)?,
        false => workspace.target.join("debug"),
    };
    let outcomes: Vec<_> = tiers.into_iter().map(|tier| run(workspace, tier, &binaries, options)).collect();
    Ok(report(&outcomes))
}

/// The groups that `demo` and a plain `test` need together.
pub(crate) fn groups_of_a_plain_run() -> Vec<&'static str> {
    groups_of(TIERS.iter().filter(|tier| tier.plain))
}

fn groups_of<'a>(tiers: impl Iterator<Item = &'a Tier>) -> Vec<&'static str> {
    let mut groups = Vec::new();
    for group in tiers.flat_map(|tier| tier.groups) {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    groups
}

fn chosen(names: &[String]) -> Result<Vec<&'static Tier>> {
    if names.is_empty() {
        return Ok(TIERS.iter().filter(|tier| tier.plain).collect());
    }
    let find = |name: &String| {
        let known = || TIERS.iter().map(|tier| tier.name).collect::<Vec<_>>().join(", ");
        let tier = TIERS.iter().find(|tier| tier.name == name);
        tier.with_context(|| format!("there is no tier {name:?}; there are: {}", known()))
    };
    names.iter().map(find).collect()
}

fn run(workspace: &Workspace, tier: &'static Tier, binaries: &Path, options: &Options) -> Outcome {
    println!("\n==> {}: {}", tier.name, tier.about);
    let started = Instant::now();
    let mut tally = Tally::default();
    match tier.root && !is_root() {
        true => {
            eprintln!(
                "error: only root can run the tier {}: sudo --preserve-env=PATH,HOME cargo xtask test",
                tier.name
            );
            tally.add_failure();
        }
        false => {
            tier.jobs.iter().for_each(|job| tally.add(&run_job(workspace, tier, job, binaries, options)))
        }
    }
    if tally.is_empty() {
        eprintln!("error: the tier {} ran no test at all", tier.name);
        tally.add_failure();
    }
    Outcome { name: tier.name, tally, time: started.elapsed() }
}

fn run_job(workspace: &Workspace, tier: &Tier, job: &Job, binaries: &Path, options: &Options) -> Tally {
    let mut tally = Tally::default();
    let outcome = match job {
        Job::Check(check) => check(workspace).map(|()| tally.add_pass()),
        Job::Tests(selection) => {
            let mut command = cargo_test(workspace, tier, selection, options);
            stream(command.env("REDIRECT_BIN_DIR", binaries), &mut tally, &mut io::stdout())
        }
    };
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        // A test that failed is counted already; a build that failed, a crash or a time-out is not.
        if !tally.has_failure() {
            tally.add_failure();
        }
    }
    tally
}

fn cargo_test(workspace: &Workspace, tier: &Tier, selection: &[&str], options: &Options) -> Command {
    let Options { arguments, minutes, .. } = options;
    let cargo = workspace.cargo();
    let mut command = match env::var_os("CI") {
        // Without a terminal there is no Ctrl-C, so the tests may have a process group of their own, which
        // timeout(1) ends as a whole.
        Some(_) => {
            let mut timeout = workspace.command("timeout");
            timeout
                .arg("--kill-after=20")
                .arg(format!("{}m", tier.minutes + minutes.unwrap_or(0)))
                .arg(cargo.get_program());
            timeout
        }
        None => cargo,
    };
    command.args(["test", "--no-fail-fast"]).args(selection);
    if !arguments.is_empty() && !selection.contains(&"--") {
        command.arg("--");
    }
    command.args(arguments);
    if let Some(minutes) = minutes {
        command.env(soak::MINUTES, minutes.to_string());
    }
    command
}

/// Runs tests, passes their output on as it comes, and counts the results that it reports.
fn stream(command: &mut Command, tally: &mut Tally, to: &mut impl Write) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {}", cmd::line(command)))?;
    let mut output = child.stdout.take().context("stdout of the tests is a pipe")?;
    let mut text = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let length = output.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        to.write_all(&buffer[..length])?;
        to.flush()?;
        text.extend_from_slice(&buffer[..length]);
    }
    tally.add(&Tally::of_output(&String::from_utf8_lossy(&text)));
    let status = child.wait()?;
    if !status.success() {
        bail!("failed ({status}): {}", cmd::line(command));
    }
    Ok(())
}

/// Prints the table and, as the last line, the totals.
fn report(outcomes: &[Outcome]) -> ExitCode {
    let mut total = Tally::default();
    println!("\n{:<11} {:>7} {:>7} {:>8} {:>9}", "tier", "passed", "failed", "ignored", "seconds");
    for Outcome { name, tally, time } in outcomes {
        let Tally { passed, failed, ignored } = tally;
        println!("{name:<11} {passed:>7} {failed:>7} {ignored:>8} {:>9.1}", time.as_secs_f64());
        total.add(tally);
    }
    println!("\n{} passed, {} failed", total.passed, total.failed);
    if total.has_failure() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::GROUPS;

    #[test]
    fn tiers_ask_only_for_groups_that_exist() {
        let known: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
        assert!(groups_of(TIERS.iter()).iter().all(|group| known.contains(group)));
    }

    #[test]
    fn an_unknown_tier_is_named_with_the_known_ones() {
        let error = chosen(&["kernal".into()]).map(|tiers| tiers.len()).unwrap_err().to_string();
        assert!(error.contains("\"kernal\"") && error.contains("kernel"), "{error}");
    }

    #[test]
    fn failing_and_passing_commands_are_counted_by_what_they_print() {
        let result = "test result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out";
        let mut tally = Tally::default();
        let script = format!("echo '{result}'; exit 101");
        let mut shown = Vec::new();
        stream(Command::new("sh").args(["-c", &script]), &mut tally, &mut shown).unwrap_err();
        assert_eq!(String::from_utf8(shown).unwrap(), format!("{result}\n"));
        assert_eq!(tally, Tally { passed: 2, failed: 1, ignored: 3 });
    }
}
