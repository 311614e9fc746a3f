//! `redirect`, the operator's tool: attach and detach by hand, look, explain, watch.
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use redirect_user::kernel::sys;
use redirect_user::node::Node;

mod agent;
mod args;
mod attach;
mod connections;
mod doctor;
mod explain;
mod flows;
mod generate;
mod kubectl;
mod lifecycle;
mod node;
mod outcomes;
mod output;
mod page;
mod report;
mod seen;
mod show;
mod top;
mod trace;
mod verify;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    if let Some(done) = kubectl::as_plugin() {
        return done.unwrap_or_else(|error| {
            eprintln!("kubectl redirect: {}", output::causes(&error));
            ExitCode::FAILURE
        });
    }
    redirect_user::node::keep_others_from_writing();
    let args = Args::parse();
    // A connection that the API server cuts is an error to the agent, not its end.
    if !matches!(args.command, Command::Agent(_)) {
        end_quietly_on_closed_pipe();
    }
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("redirect: {}", explained(&output::causes(&error)));
            ExitCode::FAILURE
        }
    }
}

/// With the reason where the process may not use bpf(2). What was tried says that in many ways.
fn explained(text: &str) -> String {
    let refused = ["os error 1)", "os error 13)"].iter().any(|errno| text.contains(errno));
    match sys::forbidden() {
        Some(why) if refused && !text.contains(why) => format!("{text}; {why}"),
        _ => text.to_owned(),
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let node = Node::new(args.bpffs, args.state_dir);
    match args.command {
        Command::Doctor(command) => return doctor::run(&node, args.output, &command),
        Command::Trace(command) => return trace::run(&node, args.output, &command),
        Command::Verify(command) => return verify::run(&node, args.output, &command),
        Command::ResolveActor(command) => return explain::act(&command),
        Command::VerifyActor(command) => return verify::act(&command),
        Command::Completions { shell } => return generate::completions(shell),
        Command::Generate { folder } => return generate::all(&folder),
        Command::Agent(command) => return agent::run(&node, &command),
        _ => {}
    }
    let output = match args.output.plain() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("redirect: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    match args.command {
        Command::Attach(command) => attach::attach(&node, output, &command),
        Command::Detach(command) => attach::detach(&node, output, &command),
        Command::List => show::list(&node, output),
        Command::Show(command) => show::show(&node, output, &command),
        Command::Explain(command) => explain::run(&node, output, &command),
        Command::Flows(command) => flows::run(&node, output, &command),
        Command::Top(command) => top::run(&node, &command),
        Command::Stats { id } => show::stats(&node, output, id.as_deref()),
        Command::Connections { id } => connections::run(&node, output, id.as_deref()),
        Command::Report(command) => report::run(&node, output, &command),
        Command::Outcomes => outcomes::run(&node, output),
        Command::Node { command } => node::run(output, &command),
        Command::Install => lifecycle::install(&node, output),
        Command::Uninstall(command) if command.node => node::uninstall(&node, output, &command.place),
        Command::Uninstall(command) => lifecycle::uninstall(&node, output, &command),
        Command::Upgrade => lifecycle::upgrade(&node, output),
        Command::Repair(command) => lifecycle::repair(&node, output, &command),
        Command::Gc => lifecycle::gc(&node, output),
        // Dealt with above.
        Command::Doctor(_)
        | Command::Trace(_)
        | Command::Verify(_)
        | Command::VerifyActor(_)
        | Command::ResolveActor(_)
        | Command::Completions { .. }
        | Command::Generate { .. }
        | Command::Agent(_) => Ok(ExitCode::SUCCESS),
    }
}

/// `redirect list | head` ends as other tools do. (Rust ignores SIGPIPE and would panic in `println!`.)
fn end_quietly_on_closed_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: restores the default action before any other thread exists; no handler of ours is involved.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
