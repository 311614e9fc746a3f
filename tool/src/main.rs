//! `redirect`, the operator's tool: attach and detach by hand, look, explain, watch.
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use redirect_user::node::Node;

mod agent;
mod attach;
mod connections;
mod doctor;
mod explain;
mod lifecycle;
mod node;
mod outcomes;
mod output;
mod show;
mod trace;

use crate::output::Output;

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
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Can this node run it? Each requirement, found or missing, and what to do.
    Doctor,
    /// Redirect a pod by hand, as the plugin's ADD does.
    Attach(Box<attach::Args>),
    /// End the redirection of a pod.
    Detach(attach::DetachArgs),
    /// What is attached.
    List,
    /// One attachment: policy, links, counters.
    Show {
        /// Container id, a unique beginning of it, or NAMESPACE/POD.
        id: String,
    },
    /// The verdict for one connection, and the rule and annotation that gave it.
    Explain(explain::Args),
    /// Live records of every decision, until Ctrl-C.
    Trace {
        /// Only this container (or a unique beginning of its id, or NAMESPACE/POD).
        id: Option<String>,
    },
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
    /// Answer the plugin's questions about this node's pods, until stopped.
    Agent(agent::Args),
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
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A connection that the API server cuts is an error to the agent, not its end.
    if !matches!(args.command, Command::Agent(_)) {
        end_quietly_on_closed_pipe();
    }
    let node = Node::new(args.bpffs, args.state_dir);
    let done = match args.command {
        Command::Doctor => doctor::run(&node, args.output),
        Command::Attach(command) => attach::attach(&node, args.output, &command),
        Command::Detach(command) => attach::detach(&node, args.output, &command),
        Command::List => show::list(&node, args.output),
        Command::Show { id } => show::show(&node, args.output, &id),
        Command::Explain(command) => explain::run(&node, args.output, &command),
        Command::Trace { id } => trace::run(&node, args.output, id.as_deref()),
        Command::Stats { id } => show::stats(&node, args.output, id.as_deref()),
        Command::Connections { id } => connections::run(&node, args.output, id.as_deref()),
        Command::Outcomes => outcomes::run(&node, args.output),
        Command::Agent(command) => agent::run(&node, &command),
        Command::Node { command } => node::run(args.output, &command),
        Command::Install => lifecycle::install(&node, args.output),
        Command::Uninstall(command) if command.node => node::uninstall(&node, args.output, &command.place),
        Command::Uninstall(command) => lifecycle::uninstall(&node, args.output, &command),
        Command::Upgrade => lifecycle::upgrade(&node, args.output),
        Command::Repair(command) => lifecycle::repair(&node, args.output, &command),
        Command::Gc => lifecycle::gc(&node, args.output),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("redirect: {}", output::causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// `redirect list | head` ends as other tools do. (Rust ignores SIGPIPE and would panic in `println!`.)
fn end_quietly_on_closed_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: restores the default action before any other thread exists; no handler of ours is involved.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
