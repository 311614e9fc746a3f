//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use redirect_user::node::Node;

use crate::output::Format;
use crate::{agent, attach, doctor, explain, flows, lifecycle, node, report, show, top, trace, verify};

/// Transparent redirection of pod traffic into the sidecar, without iptables.
#[derive(Debug, Parser)]
#[command(name = "redirect", version, propagate_version = true)]
pub(crate) struct Args {
    /// Where the bpf file system is mounted.
    #[arg(long, global = true, default_value = Node::DEFAULT_BPFFS, value_name = "PATH")]
    pub(crate) bpffs: PathBuf,
    /// Where the lock and the attachments' records are.
    #[arg(long, global = true, default_value = Node::DEFAULT_STATE_DIR, value_name = "PATH")]
    pub(crate) state_dir: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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
