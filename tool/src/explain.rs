//! `redirect explain`: what would happen to a connection, and why.

mod manifest;
mod names;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
pub(crate) use names::{ActorArgs, act};
use redirect_common::Protocol;
use redirect_user::attach::record::Attachment;
use redirect_user::explain::{self, Explanation, Question};
use redirect_user::node::Node;
use serde_json::{Value, json};

use crate::output::{self, Output};

/// `redirect explain`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["id", "from"]))]
#[command(group = clap::ArgGroup::new("direction").args(["dst", "inbound"]))]
pub(crate) struct Args {
    /// Container id, a unique beginning of it, or NAMESPACE/POD.
    id: Option<String>,
    /// A manifest instead, YAML or JSON: would its pod be enrolled, and what would happen then?
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// With --from: as if the sidecar injector had added the sidecar.
    #[arg(long, requires = "from")]
    assume_injected: bool,
    /// With --from: keys of the plugin's configuration, as a JSON object, or a file with one.
    #[arg(long, value_name = "JSON|FILE", requires = "from")]
    plugin_conf: Option<String>,
    /// Outbound: what is dialled, `10.0.0.1:80`, `[fd00::1]:80`, or a name as the pod knows it,
    /// `reviews:9080`.
    #[arg(long, value_name = "HOST:PORT")]
    dst: Option<String>,
    /// Outbound: UDP instead of TCP.
    #[arg(long, requires = "dst")]
    udp: bool,
    /// Outbound: the caller's uid, as the pod sees it.
    #[arg(long, requires = "dst", default_value_t = 0)]
    uid: u32,
    /// Outbound: the caller's gid, as the pod sees it.
    #[arg(long, requires = "dst", default_value_t = 0)]
    gid: u32,
    /// Outbound: the address that the caller's socket is bound to.
    #[arg(long, requires = "dst", value_name = "IP")]
    src: Option<IpAddr>,
    /// Inbound: a port of the pod.
    #[arg(long, value_name = "PORT")]
    inbound: Option<u16>,
    /// Inbound: index of the interface in the pod on which the connection arrives.
    #[arg(long, requires = "inbound", value_name = "INDEX")]
    interface: Option<u32>,
}

/// Explains.
pub(crate) fn run(node: &Node, output: Output, args: &Args) -> Result<ExitCode> {
    if let Some(file) = &args.from {
        return manifest::run(output, file, args);
    }
    let attachments = output::resolve(node, args.id.as_deref().unwrap_or_default())?;
    let Some(attachment) = attachments.first() else {
        bail!("{:?} is not attached", args.id);
    };
    if let Some(port) = args.inbound {
        print(output, &explain::inbound(attachment, port, args.interface))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(dst) = &args.dst else { bail!("give --dst HOST:PORT or --inbound PORT") };
    if let Ok(dst) = dst.parse() {
        print(output, &outbound(attachment, dst, args))?;
        return Ok(ExitCode::SUCCESS);
    }
    let answers = names::resolve(attachment, dst)?;
    let explained: Vec<_> = answers.iter().map(|dst| (*dst, outbound(attachment, *dst, args))).collect();
    match output {
        Output::Json => {
            let values: Result<Vec<_>> = explained.iter().map(|(dst, one)| value(*dst, one)).collect();
            output::json(&values?)?;
        }
        Output::Text => explained.iter().for_each(|(dst, one)| println!("{dst}: {}", words(one))),
    }
    Ok(ExitCode::SUCCESS)
}

fn value(dst: SocketAddr, one: &Explanation) -> Result<Value> {
    let mut value = serde_json::to_value(one)?;
    value["dst"] = json!(dst);
    Ok(value)
}

fn outbound(attachment: &Attachment, dst: SocketAddr, args: &Args) -> Explanation {
    let protocol = if args.udp { Protocol::Udp } else { Protocol::Tcp };
    explain::outbound(attachment, &Question { protocol, dst, src: args.src, uid: args.uid, gid: args.gid })
}

fn print(output: Output, explanation: &Explanation) -> Result<()> {
    match output {
        Output::Json => output::json(explanation),
        Output::Text => {
            println!("{}", words(explanation));
            Ok(())
        }
    }
}

fn words(explanation: &Explanation) -> String {
    let Explanation { verdict, rule, rule_name, cause, change } = explanation;
    format!("{verdict}\nrule {rule} ({rule_name}): {cause}\nfor another verdict: {change}")
}
