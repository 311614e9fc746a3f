//! `redirect attach` and `redirect detach`: what ADD and DEL do, by hand. The flags are named after the
//! annotations and have their grammar.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use redirect_user::attach::record::Attachment;
use redirect_user::attach::{self, Request, life};
use redirect_user::gc;
use redirect_user::ids::AttachmentId;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::grammar;
use redirect_user::policy::parameters::PARAMETERS;
use redirect_user::policy::{Policy, Proxy};

use crate::output::{self, Output};

/// `redirect attach`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container id under which the attachment is filed.
    #[arg(long)]
    id: String,
    /// Interface under which the attachment is filed.
    #[arg(long, default_value = "eth0")]
    ifname: String,
    /// The pod's directory in cgroup v2.
    #[arg(long, value_name = "PATH")]
    cgroup: PathBuf,
    /// The pod's network namespace.
    #[arg(long, value_name = "PATH")]
    netns: PathBuf,
    #[command(flatten)]
    policy: PolicyFlags,
    /// The sidecar's uid, as the pod sees it.
    #[arg(long, default_value_t = 1337)]
    proxy_uid: u32,
    /// The sidecar's gid, as the pod sees it.
    #[arg(long, default_value_t = 1337)]
    proxy_gid: u32,
    /// The sidecar's outbound listener.
    #[arg(long, default_value_t = 15001)]
    outbound_port: u16,
    /// The sidecar's inbound listener.
    #[arg(long, default_value_t = 15006)]
    inbound_port: u16,
    /// The DNS proxy.
    #[arg(long, default_value_t = 15053)]
    dns_port: u16,
    /// Capture DNS: port 53, TCP and UDP.
    #[arg(long)]
    dns_capture: bool,
}

/// A flag for each row of the table of parameters, with the grammar and the default of its annotation.
#[derive(Clone, Debug)]
struct PolicyFlags(Policy);

impl clap::Args for PolicyFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        PARAMETERS.iter().fold(command, |command, parameter| {
            let read = |value: &str| -> Result<String, grammar::Malformed> {
                parameter.set(&mut Policy::default(), value).map(|()| value.to_owned())
            };
            let flag = clap::Arg::new(parameter.name).long(parameter.flag).value_name("VALUE");
            command.arg(flag.help(parameter.help).default_value(parameter.default).value_parser(read))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        PolicyFlags::augment_args(command)
    }
}

impl clap::FromArgMatches for PolicyFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<PolicyFlags, clap::Error> {
        let mut flags = PolicyFlags(Policy::default());
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for parameter in PARAMETERS {
            let value = matches.get_one::<String>(parameter.name).map_or(parameter.default, String::as_str);
            parameter
                .set(&mut self.0, value)
                .map_err(|problem| clap::Error::raw(clap::error::ErrorKind::ValueValidation, problem))?;
        }
        Ok(())
    }
}

impl Args {
    fn policy(&self) -> Policy {
        Policy {
            dns_capture: self.dns_capture,
            proxy: Proxy {
                uid: self.proxy_uid,
                gid: self.proxy_gid,
                outbound_port: self.outbound_port,
                inbound_port: self.inbound_port,
                dns_port: self.dns_port,
            },
            ..self.policy.0.clone()
        }
    }
}

/// Attaches.
pub(crate) fn attach(node: &Node, output: Output, args: &Args) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let request = Request {
        id: AttachmentId { container_id: args.id.clone(), ifname: args.ifname.clone() },
        cgroup: args.cgroup.clone(),
        netns: args.netns.clone(),
        policy: args.policy(),
        pod: None,
        network: None,
        addresses: Vec::new(),
        made_cgroups: Vec::new(),
    };
    let attachment = attach::attach(node, &lock, &request)?;
    match output {
        Output::Json => output::json(&attachment)?,
        Output::Text => println!("attached {} to {}", args.id, args.cgroup.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// `redirect detach`
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArgs {
    /// Container id under which the attachment is filed, a unique beginning of it, or NAMESPACE/POD.
    #[arg(long)]
    id: String,
    /// Also while the pod runs: it sends in clear from then on.
    #[arg(long)]
    force: bool,
    /// Only this interface's attachment.
    #[arg(long)]
    ifname: Option<String>,
}

/// Detaches. A running pod only when that is meant.
pub(crate) fn detach(node: &Node, output: Output, args: &DetachArgs) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    // Pins may be there without a record, and then only the whole id finds them.
    let found = output::resolve(node, &args.id).unwrap_or_default();
    let meant =
        |attachment: &&Attachment| args.ifname.as_ref().is_none_or(|name| *name == attachment.id.ifname);
    if !args.force
        && let Some(running) = found.iter().filter(meant).find(|attachment| life::runs(node, attachment))
    {
        bail!("{} runs and would send in clear; stop it first, or give --force", output::name(running));
    }
    if !args.force && found.is_empty() && gc::unrecorded_pods(node, &found)?.contains(&args.id) {
        bail!(
            "{} has links, but its record is not readable: its pod may run, and would send in clear; stop it first, \
             or give --force",
            args.id
        );
    }
    let id = found.first().map_or(&args.id, |attachment| &attachment.id.container_id);
    if !attach::detach(node, &lock, id, args.ifname.as_deref())? {
        bail!("{:?} is not attached; `redirect list` shows what is", args.id);
    }
    match output {
        Output::Json => output::json(&serde_json::json!({ "detached": id }))?,
        Output::Text => println!("detached {id}"),
    }
    Ok(ExitCode::SUCCESS)
}
