//! `cargo xtask test vm [KERNEL..]`: boots other kernels and runs the tool and tests in them.
//!
//! A plain `cargo xtask test` boots the oldest kernel that works and runs a few tests there. With names, or
//! `--all`, each kernel gets all that fits, and its row in the table of docs/kernels.md.

mod arm64;
mod guest;
mod jobs;
mod kernels;
mod root;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use self::guest::Report;
use self::jobs::Extent;
use self::kernels::{KERNELS, Kernel};
use crate::workspace::{Workspace, is_root};
use crate::{build, setup};

/// The kernel of a plain run.
const OLDEST: &str = "6.1";
/// What the results stand between.
const MARKS: [&str; 2] = ["<!-- results -->", "<!-- end of results -->"];
/// The document with the results.
const DOCUMENT: &str = "docs/kernels.md";

/// A few tests on the oldest kernel.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let kernel =
        KERNELS.iter().find(|kernel| kernel.name == OLDEST).context("the list has the oldest one")?;
    let report = boot(workspace, kernel, Extent::Least)?;
    ensure!(failed(&report) == 0, "{} of the tests failed on Linux {}", failed(&report), report.release);
    Ok(())
}

/// All tests that fit, or a few and those whose names begin with `also`, on the kernels with these names, or
/// on all.
pub(crate) fn main(
    workspace: &Workspace,
    names: &[String],
    short: bool,
    also: &[String],
) -> Result<ExitCode> {
    ensure!(short || also.is_empty(), "without --short all tests are run: leave {also:?} out");
    ensure!(is_root(), "only root can run the tests in a guest, which reads this machine's files");
    let known = || KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ");
    for name in names {
        ensure!(
            KERNELS.iter().any(|kernel| kernel.name == name),
            "there is no kernel {name:?}; there are: {}",
            known()
        );
    }
    setup::ensure(workspace, &["toolchain", "mesh", "oracle", "containerd", "vm"])?;
    build::build_all(workspace)?;
    let wanted = |kernel: &&Kernel| names.is_empty() || names.iter().any(|name| name == kernel.name);
    let extent = if short { Extent::Few(also) } else { Extent::All };
    let mut reports = Vec::new();
    for kernel in KERNELS.iter().filter(wanted) {
        reports.push((kernel, boot(workspace, kernel, extent)?));
        // After each: what was found stays, also when somebody ends the command.
        publish(workspace, &table(&reports[reports.len() - 1..], extent))?;
    }
    print!("\n{}", table(&reports, extent));
    let failed: usize = reports.iter().map(|(_, report)| failed(report)).sum();
    let passed: usize = reports.iter().map(|(_, report)| report.outcomes.len()).sum::<usize>() - failed;
    println!("\n{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The soak in a guest with this kernel.
pub(crate) fn soak(workspace: &Workspace, name: &str, minutes: u32) -> Result<ExitCode> {
    ensure!(is_root(), "only root can run the tests in a guest, which reads this machine's files");
    // The guest runs this machine's binaries.
    let kernel = KERNELS.iter().find(|kernel| kernel.name == name && kernel.foreign.is_none());
    let kernel = kernel.with_context(|| format!("there is no kernel {name:?}: see `cargo xtask test vm`"))?;
    setup::ensure(workspace, &["toolchain", "mesh", "vm"])?;
    build::build_all(workspace)?;
    let job = jobs::soak(workspace, minutes)?;
    println!("\n==> Linux {}: a soak of {minutes} minutes", kernel.name);
    let report = guest::run(kernel, &kernel.files(workspace)?, &[job])?;
    Ok(if failed(&report) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn boot(workspace: &Workspace, kernel: &Kernel, extent: Extent<'_>) -> Result<Report> {
    if kernel.foreign.is_some() {
        return arm64::boot(workspace, kernel);
    }
    let files = kernel.files(workspace)?;
    let jobs = jobs::plan(workspace, kernel, &workspace.target.join("debug"), extent)?;
    println!("\n==> Linux {}: {} jobs", kernel.name, jobs.len());
    guest::run(kernel, &files, &jobs)
}

fn failed(report: &Report) -> usize {
    report.outcomes.iter().filter(|outcome| outcome.status != 0).count()
}

/// Passed and all, by tier.
fn by_tier(report: &Report) -> BTreeMap<&str, (usize, usize)> {
    let mut tiers = BTreeMap::new();
    for outcome in &report.outcomes {
        let tier = outcome.label.split("::").next().unwrap_or_default();
        let (passed, all) = tiers.entry(tier).or_insert((0, 0));
        *passed += usize::from(outcome.status == 0);
        *all += 1;
    }
    tiers
}

/// Kernel by tier.
fn table(reports: &[(&Kernel, Report)], extent: Extent<'_>) -> String {
    const TIERS: [&str; 7] = ["tool", "features", "datapath", "capture", "guard", "oracle", "containerd"];
    let mut text =
        format!("| kernel | release | CPUs | run | {} | up after, s | jobs, s |\n", TIERS.join(" | "));
    text += &format!("|---|---|---:|---|{}---:|---:|\n", "---|".repeat(TIERS.len()));
    for (kernel, report) in reports {
        let tiers = by_tier(report);
        let cell = |tier: &&str| match tiers.get(*tier) {
            Some((passed, all)) if passed == all && !kernel.works && *tier == "tool" => {
                "refused, as it must".into()
            }
            Some((passed, all)) if passed == all => format!("{all} pass"),
            Some((passed, all)) => format!("{} of {all} fail", all - passed),
            None => "–".into(),
        };
        let cells = TIERS.iter().map(cell).collect::<Vec<_>>().join(" | ");
        let jobs: f64 = report.outcomes.iter().map(|outcome| outcome.took.as_secs_f64()).sum();
        let (name, release, cpus, boot) = (kernel.name, &report.release, kernel.cpus, report.boot);
        let run = match extent {
            Extent::All => "all".to_owned(),
            Extent::Few([]) | Extent::Least => "short".to_owned(),
            Extent::Few(also) => format!("short, all {}", also.join(", ")),
        };
        let _ = writeln!(text, "| {name} | {release} | {cpus} | {run} | {cells} | {boot:.0} | {jobs:.0} |");
    }
    text
}

/// Puts the rows of a table into the document's.
fn publish(workspace: &Workspace, table: &str) -> Result<()> {
    let path = workspace.root.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let new = with_results(&text, table).with_context(|| format!("{DOCUMENT} lacks its marks"))?;
    fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))
}

fn with_results(text: &str, table: &str) -> Option<String> {
    let [begin, end] = MARKS;
    let (head, rest) = text.split_once(begin)?;
    let (old, tail) = rest.split_once(end)?;
    Some(format!("{head}{begin}\n\n{}\n{end}{tail}", merged(old.trim(), table)))
}

/// A table with the rows of another in place of its own about the same kernels, in the kernels' order.
fn merged(old: &str, new: &str) -> String {
    let find = |table: &str, name: &str| {
        let begin = format!("| {name} |");
        table.lines().find(|line| line.starts_with(&begin)).map(|line| format!("{line}\n"))
    };
    let heading: String = new.lines().take(2).map(|line| format!("{line}\n")).collect();
    let rows = KERNELS.iter().filter_map(|kernel| find(new, kernel.name).or_else(|| find(old, kernel.name)));
    heading + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_takes_the_results() {
        let root = Workspace::find().unwrap().root;
        let text = fs::read_to_string(root.join(DOCUMENT)).unwrap();
        let table = |row: &str| format!("| kernel | release |\n|---|---|\n{row}\n");
        let once = with_results(&text, &table("| 6.1 | a |")).unwrap();
        assert_eq!(with_results(&once, &table("| 6.1 | a |")).as_ref(), Some(&once));
        let twice = with_results(&once, &table("| 5.10 | b |")).unwrap();
        assert!(twice.contains("|---|---|\n| 5.10 | b |\n| 6.1 | a |\n"), "{twice}");
    }

    #[test]
    fn the_plain_kernel_is_one_that_works() {
        assert!(KERNELS.iter().any(|kernel| kernel.name == OLDEST && kernel.works));
    }
}
