//! `redirect`, the operator's tool: attach and detach by hand, look, explain, watch.
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use redirect_user::node::Node;

mod agent;
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
mod show;
mod top;
mod trace;
mod verify;

use crate::output::Format;

/// Transparent redirection of pod traffic into the sidecar, without iptables.
#[derive(Debug, Parser)]
#[command(name = "redirect", version, propagate_version = true)]
struct Args {
    /// Where the bpf file system is mounted.
    #[arg(long, global = true, default_value = Node::DEFAULT_BPFFS, value_name = "PATH")]
    bpffs: PathBuf,
    /// Where the lock and the attachments' records are.
    #[arg(long, global = true, default_value = Node::DEFAULT_STATE_DIR, value_name = "PATH")]
    state_dir: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Can this node run it, and is all as it should be? Each check, and what to do.
    Doctor(doctor::Args),
    /// Try this node in a scratch pod: every verdict once, over IPv4 and IPv6, and closed without a sidecar.
    Verify(verify::Args),
    /// A process of the scratch pod.
    #[command(hide = true)]
    VerifyActor(verify::ActorArgs),
    /// A process in a pod that asks for a name.
    #[command(hide = true)]
    ResolveActor(explain::ActorArgs),
    /// Redirect a pod by hand, as the plugin's ADD does.
    Attach(Box<attach::Args>),
    /// End the redirection of a pod.
    Detach(attach::DetachArgs),
    /// What is attached.
    List,
    /// One attachment: policy, links, counters.
    Show(show::Args),
    /// The verdict for one connection, and the rule and annotation that gave it.
    Explain(explain::Args),
    /// Live records of every decision, until Ctrl-C.
    Trace(trace::Args),
    /// Which pods talk to which addresses, by which verdict.
    Flows(flows::Args),
    /// Pods and programs, live: rates by verdict, time per run.
    Top(top::Args),
    /// Counters by verdict.
    Stats {
        /// Only this container (or a unique beginning of its id, or NAMESPACE/POD).
        id: Option<String>,
    },
    /// Captured connections, with the destinations that the applications dialled.
    Connections {
        /// Only this container (or a unique beginning of its id).
        id: Option<String>,
    },
    /// How the plugin decided about pods since the boot, by outcome.
    Outcomes,
    /// Write an archive for a bug report, without secrets.
    Report(report::Args),
    /// Answer the plugin's questions about this node's pods, until stopped.
    Agent(Box<agent::Args>),
    /// The plugin's entry in this node's CNI configuration.
    Node {
        #[command(subcommand)]
        command: node::Command,
    },
    /// Put the programs of this version on the node.
    Install,
    /// Detach every pod and remove the programs. Refuses while pods run. With --node, take the plugin off the
    /// node and leave running pods redirected.
    Uninstall(lifecycle::UninstallArgs),
    /// Replace the programs of attached pods by this version's, in place.
    Upgrade,
    /// Attach pods again that have lost links, map entries or routes, from their records.
    Repair(lifecycle::RepairArgs),
    /// Remove what belongs to pods that are gone.
    Gc,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages and completions into a folder, for a package.
    #[command(hide = true)]
    Generate {
        /// The folder.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    if let Some(done) = kubectl::as_plugin() {
        return done.unwrap_or_else(|error| {
            eprintln!("kubectl redirect: {}", output::causes(&error));
            ExitCode::FAILURE
        });
    }
    let args = Args::parse();
    // A connection that the API server cuts is an error to the agent, not its end.
    if !matches!(args.command, Command::Agent(_)) {
        end_quietly_on_closed_pipe();
    }
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("redirect: {}", output::causes(&error));
            ExitCode::FAILURE
        }
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
