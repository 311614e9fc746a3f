//! `redirect verify`: the node tries itself in a scratch pod.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use redirect_user::node::Node;
use redirect_user::verify::{self, Options, Report, State, Tried, actor};

use crate::output::{self, Format};

/// `redirect verify`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where cgroup v2 is, if the plugin's configuration has "cgroupRoot".
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<PathBuf>,
}

/// What the scratch pod's processes are started with.
#[derive(Debug, clap::Args)]
pub(crate) struct ActorArgs {
    #[arg(long)]
    netns: PathBuf,
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(long)]
    id: u32,
}

/// A signal asks for the end; the scratch pod is taken away first.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// Tries the node; fails when it is not as it should be.
pub(crate) fn run(node: &Node, format: Format, args: &Args) -> Result<ExitCode> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    // A reader that goes away must not end the process before the pod is taken away.
    // SAFETY: ignoring a signal involves no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    if matches!(format, Format::Short | Format::Compact) {
        anyhow::bail!("`redirect verify` prints text, json or junit");
    }
    let report = verify::run(node, &Options { cgroup_root: args.cgroup_root.clone() }, &STOP);
    let printed = match format {
        Format::Json => output::json(&report),
        Format::Junit => junit(&report),
        _ => text(&report),
    };
    // A closed pipe changes nothing about what was found.
    let _ = printed;
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Is one of the scratch pod's processes.
pub(crate) fn act(args: &ActorArgs) -> Result<ExitCode> {
    let role = actor::Role { netns: args.netns.clone(), cgroup: args.cgroup.clone(), id: args.id };
    actor::live(&role)?;
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> Result<()> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for trial in &report.trials {
        let word = match trial.state {
            State::Passed => "ok",
            State::Failed => "FAILED",
            State::Untried => "not tried",
        };
        match rows.last_mut() {
            Some(row) if row[0] == trial.name => row.push(word.into()),
            _ => rows.push(vec![trial.name.into(), word.into()]),
        }
    }
    output::table(&["TRIAL", "IPv4", "IPv6"], &rows)?;
    let mut out = io::stdout().lock();
    writeln!(out)?;
    for trial in report.trials.iter().filter(|trial| trial.state == State::Failed) {
        writeln!(out, "FAILED  {} over {}: {}", trial.name, trial.family, trial.detail)?;
        writeln!(out, "        expected: {}", trial.expected)?;
    }
    report.faults.iter().try_for_each(|fault| writeln!(out, "FAULT   {fault}"))?;
    writeln!(out, "{}", summary(report))?;
    if !report.passed {
        writeln!(out, "`redirect doctor` examines what this node needs")?;
    }
    Ok(())
}

/// `24 of 24 in 0.4 s`
fn summary(report: &Report) -> String {
    let (passed, failed) = (report.count(State::Passed), report.count(State::Failed));
    let seconds = report.milliseconds as f64 / 1000.0;
    let mut text = format!("{passed} of {} in {seconds:.1} s", passed + failed);
    let untried: Vec<_> = report.trials.iter().filter(|trial| trial.state == State::Untried).collect();
    if let Some(first) = untried.first() {
        text = format!("{text}; {} not tried: {}", untried.len(), first.detail);
    }
    text
}

/// One test suite; what is wrong besides the trials is a test case of its own.
fn junit(report: &Report) -> Result<()> {
    let mut out = io::stdout().lock();
    let failures = report.count(State::Failed) + report.faults.len();
    let skipped = report.count(State::Untried);
    let count = report.trials.len() + report.faults.len();
    let seconds = report.milliseconds as f64 / 1000.0;
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        r#"<testsuite name="redirect verify" tests="{count}" failures="{failures}" skipped="{skipped}" time="{seconds:.3}">"#
    )?;
    for trial in &report.trials {
        let seconds = trial.milliseconds as f64 / 1000.0;
        let (class, name) = (trial.family, escape(trial.name));
        write!(out, r#"  <testcase classname="{class}" name="{name}" time="{seconds:.3}">"#)?;
        writeln!(out, "{}</testcase>", outcome(trial))?;
    }
    for fault in &report.faults {
        let fault = escape(fault);
        writeln!(
            out,
            r#"  <testcase classname="node" name="attachment"><failure message="{fault}"/></testcase>"#
        )?;
    }
    Ok(writeln!(out, "</testsuite>")?)
}

fn outcome(trial: &Tried) -> String {
    let detail = escape(&trial.detail);
    match trial.state {
        State::Passed => String::new(),
        State::Failed => {
            format!(r#"<failure message="{detail}">expected: {}</failure>"#, escape(trial.expected))
        }
        State::Untried => format!(r#"<skipped message="{detail}"/>"#),
    }
}

/// Text for XML. Control characters have no place in it at all.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
