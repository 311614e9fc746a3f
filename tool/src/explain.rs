//! `redirect explain`: what would happen to a connection, and why.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use redirect_common::Protocol;
use redirect_user::explain::{self, Question};
use redirect_user::node::Node;

use crate::output::{self, Output};

/// `redirect explain`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("direction").required(true).args(["dst", "inbound"]))]
pub(crate) struct Args {
    /// Container id, a unique beginning of it, or NAMESPACE/POD.
    id: String,
    /// Outbound: the address that is dialled, `10.0.0.1:80` or `[fd00::1]:80`.
    #[arg(long, value_name = "IP:PORT")]
    dst: Option<SocketAddr>,
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
    let attachments = output::resolve(node, &args.id)?;
    let Some(attachment) = attachments.first() else {
        bail!("{:?} is not attached", args.id);
    };
    let explanation = match (args.dst, args.inbound) {
        (Some(dst), _) => {
            let protocol = if args.udp { Protocol::Udp } else { Protocol::Tcp };
            explain::outbound(
                attachment,
                &Question { protocol, dst, src: args.src, uid: args.uid, gid: args.gid },
            )
        }
        (None, Some(port)) => explain::inbound(attachment, port, args.interface),
        (None, None) => bail!("give --dst IP:PORT or --inbound PORT"),
    };
    match output {
        Output::Json => output::json(&explanation)?,
        Output::Text => println!(
            "{}\nrule {} ({}): {}",
            explanation.verdict, explanation.rule, explanation.rule_name, explanation.cause
        ),
    }
    Ok(ExitCode::SUCCESS)
}
