//! `redirect attach` and `redirect detach`: what ADD and DEL do, by hand. The flags are named after the
//! annotations and have their grammar.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use ipnet::IpNet;
use redirect_common::PROXY_PORTS;
use redirect_user::attach::{self, Request};
use redirect_user::ids::AttachmentId;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::grammar;
use redirect_user::policy::{Policy, Ports, Proxy, Ranges};

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
    /// `*`, or CIDRs separated by commas; empty for none.
    #[arg(long, value_parser = grammar::ranges_or_all, default_value = "*")]
    include_outbound_ip_ranges: Ranges,
    /// CIDRs separated by commas.
    #[arg(long, value_parser = ranges, default_value = "")]
    exclude_outbound_ip_ranges: List<IpNet>,
    /// Ports separated by commas.
    #[arg(long, value_parser = ports, default_value = "")]
    include_outbound_ports: List<u16>,
    /// Ports separated by commas.
    #[arg(long, value_parser = ports, default_value = "15020")]
    exclude_outbound_ports: List<u16>,
    /// `*`, or ports separated by commas; empty for none.
    #[arg(long, value_parser = grammar::ports_or_all, default_value = "*")]
    include_inbound_ports: Ports,
    /// Ports separated by commas; 15020, 15021 and 15090 are always added.
    #[arg(long, value_parser = ports, default_value = "")]
    exclude_inbound_ports: List<u16>,
    /// Interface names separated by commas.
    #[arg(long, value_parser = interfaces, default_value = "")]
    exclude_interfaces: List<String>,
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

/// A list in one argument (clap would take a `Vec` as "may be given several times").
#[derive(Clone, Debug)]
struct List<T>(Vec<T>);

fn ranges(text: &str) -> Result<List<IpNet>, grammar::Malformed> {
    if text.is_empty() { Ok(List(Vec::new())) } else { grammar::ranges(text).map(List) }
}

fn ports(text: &str) -> Result<List<u16>, grammar::Malformed> {
    if text.is_empty() {
        return Ok(List(Vec::new()));
    }
    Ok(List(grammar::ports(text)?.into_iter().collect()))
}

fn interfaces(text: &str) -> Result<List<String>, grammar::Malformed> {
    if text.is_empty() { Ok(List(Vec::new())) } else { grammar::interfaces(text).map(List) }
}

impl Args {
    fn policy(&self) -> Policy {
        let set = |list: &List<u16>| list.0.iter().copied().collect::<BTreeSet<_>>();
        let mut exclude_inbound_ports = set(&self.exclude_inbound_ports);
        exclude_inbound_ports.extend(PROXY_PORTS);
        Policy {
            include_outbound_ip_ranges: self.include_outbound_ip_ranges.clone(),
            exclude_outbound_ip_ranges: self.exclude_outbound_ip_ranges.0.clone(),
            include_outbound_ports: set(&self.include_outbound_ports),
            exclude_outbound_ports: set(&self.exclude_outbound_ports),
            include_inbound_ports: self.include_inbound_ports.clone(),
            exclude_inbound_ports,
            exclude_interfaces: self.exclude_interfaces.0.clone(),
            dns_capture: self.dns_capture,
            proxy: Proxy {
                uid: self.proxy_uid,
                gid: self.proxy_gid,
                outbound_port: self.outbound_port,
                inbound_port: self.inbound_port,
                dns_port: self.dns_port,
            },
            ..Policy::default()
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
    /// Container id under which the attachment is filed.
    #[arg(long)]
    id: String,
    /// Only this interface's attachment.
    #[arg(long)]
    ifname: Option<String>,
}

/// Detaches.
pub(crate) fn detach(node: &Node, output: Output, args: &DetachArgs) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    if !attach::detach(node, &lock, &args.id, args.ifname.as_deref())? {
        bail!("{:?} is not attached; `redirect list` shows what is", args.id);
    }
    match output {
        Output::Json => output::json(&serde_json::json!({ "detached": args.id }))?,
        Output::Text => println!("detached {}", args.id),
    }
    Ok(ExitCode::SUCCESS)
}
