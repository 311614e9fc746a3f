//! `redirect list`, `show` and `stats`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use redirect_user::attach::record::{self, Attachment};
use redirect_user::attach::replan::{self, Remark};
use redirect_user::attach::tables::Tables;
use redirect_user::connections;
use redirect_user::inspect::{self, Drift, FilterState, LinkState};
use redirect_user::node::Node;
use redirect_user::ready;
use serde_json::{Map, Value, json};

use crate::output::{self, Output};
use crate::page;

/// What is attached, one line each.
pub(crate) fn list(node: &Node, output: Output) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let mut values = Vec::new();
    let mut healthy = true;
    for attachment in inspect::list(node)? {
        let drift = inspect::compare(node, &attachment)?;
        healthy &= drift.is_empty();
        values.push(value(&attachment, &drift)?);
        let health = health(&attachment, &drift);
        let id = attachment.id.container_id.chars().take(13).collect();
        rows.push(vec![
            id,
            attachment.id.ifname.clone(),
            output::pod_name(&attachment),
            attachment.policy.interception_mode.name().to_owned(),
            addresses(&attachment),
            health,
        ]);
    }
    match output {
        Output::Json => output::json(&values)?,
        Output::Text if rows.is_empty() => println!("nothing is attached"),
        Output::Text => {
            output::table(&["CONTAINER", "INTERFACE", "POD", "MODE", "ADDRESSES", "HEALTH"], &rows)?;
        }
    }
    if let Some(stamp) = ready::other_build(node) {
        eprintln!("redirect: the programs are of another build ({stamp}); `redirect upgrade` replaces them");
    }
    for record in record::unreadable(node)? {
        healthy = false;
        eprintln!("redirect: {record}; `redirect gc` sets it aside");
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One cell: "ok" or what is wrong, and what else there is to know.
fn health(attachment: &Attachment, drift: &[Drift]) -> String {
    let mut parts = vec![if drift.is_empty() { "ok".to_owned() } else { inspect::describe(drift) }];
    if attachment.orphaned {
        parts.push("orphaned: the runtime does not list it any more; it goes when its processes end".into());
    }
    parts.extend(remarks(attachment).iter().map(|remark| format!("note: {remark}")));
    parts.join("; ")
}

fn value(attachment: &Attachment, drift: &[Drift]) -> Result<Value> {
    let mut value = serde_json::to_value(attachment)?;
    value["remarks"] =
        serde_json::to_value(remarks(attachment).iter().map(ToString::to_string).collect::<Vec<_>>())?;
    value["drift"] = drift.iter().map(|drift| Value::String(drift.to_string())).collect();
    Ok(value)
}

/// What a look at the pod's namespace finds that is no fault of the attachment.
fn remarks(attachment: &Attachment) -> Vec<Remark> {
    replan::look(attachment).map(|coverage| coverage.remarks).unwrap_or_default()
}

fn addresses(attachment: &Attachment) -> String {
    attachment.changes.local_routes.iter().map(|route| route.source.to_string()).collect::<Vec<_>>().join(" ")
}

/// `redirect show`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container id, a unique beginning of it, or NAMESPACE/POD.
    id: String,
    /// Write a page for a browser instead: a picture of this pod's interception, with its counters.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// With --html: write the page again after so many seconds, until Ctrl-C. The browser reads it again by
    /// itself.
    #[arg(long, value_name = "SECONDS", requires = "html", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
}

/// Writes the page of the first attachment that is meant.
fn write_page(node: &Node, args: &Args, file: &Path) -> Result<ExitCode> {
    loop {
        let attachments = output::resolve(node, &args.id)?;
        let Some(attachment) = attachments.first() else { bail!("{:?} is not attached", args.id) };
        let drift = inspect::compare(node, attachment)?;
        let about = page::pod::About {
            attachment,
            health: &health(attachment, &drift),
            links: &inspect::links(node, attachment)?,
            counters: &Tables::open(node)?.counters(attachment.cookie)?,
            connections: &connections::of(node, attachment)?,
        };
        page::write(file, &about.draw(args.every))?;
        let Some(seconds) = args.every else { break };
        std::thread::sleep(Duration::from_secs(seconds));
    }
    println!("wrote {}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// One container: policy, links, counters.
pub(crate) fn show(node: &Node, output: Output, args: &Args) -> Result<ExitCode> {
    if let Some(file) = &args.html {
        return write_page(node, args, file);
    }
    let attachments = output::resolve(node, &args.id)?;
    let mut values = Vec::new();
    for attachment in &attachments {
        let drift = inspect::compare(node, attachment)?;
        let links = inspect::links(node, attachment)?;
        let filters = inspect::filters(node, attachment)?;
        let counters = counters(node, attachment)?;
        match output {
            Output::Json => {
                let mut value = value(attachment, &drift)?;
                value["links"] = serde_json::to_value(&links)?;
                value["filters"] = serde_json::to_value(&filters)?;
                value["counters"] = Value::Object(counters);
                values.push(value);
            }
            Output::Text => {
                print(attachment, &drift, &links)?;
                print_filters(&filters)?;
                println!();
                print_counters(&counters)?;
            }
        }
    }
    if output == Output::Json {
        output::json(&values)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(attachment: &Attachment, drift: &[Drift], links: &[LinkState]) -> Result<()> {
    println!("container   {} ({})", attachment.id.container_id, attachment.id.ifname);
    println!("pod         {}", output::pod_name(attachment));
    println!("cgroup      {} (id {})", attachment.cgroup.display(), attachment.cgroup_id);
    println!("netns       {} (cookie {})", attachment.netns.display(), attachment.cookie);
    println!("mode        {}", attachment.policy.interception_mode.name());
    println!("addresses   {}", addresses(attachment));
    println!("health      {}", health(attachment, drift));
    print_policy(&serde_json::to_value(&attachment.policy)?)?;
    println!("sockets     redirect connections {}", attachment.id.container_id);
    let id = |id: Option<u32>| id.map_or("-".into(), |id| id.to_string());
    let rows: Vec<_> = links
        .iter()
        .map(|link| {
            let state = link.drift.as_ref().map_or("ok".into(), ToString::to_string);
            vec![link.hook.into(), id(link.link_id), id(link.program_id), state]
        })
        .collect();
    println!();
    output::table(&["HOOK", "LINK", "PROGRAM", "STATE"], &rows)
}

/// A line for each parameter; of a long list the beginning, and how long it is.
fn print_policy(policy: &Value) -> Result<()> {
    let rows = policy.as_object().into_iter().flatten();
    for (number, (name, value)) in rows.enumerate() {
        let head = if number == 0 { "policy" } else { "" };
        println!("{head:<12}{name}: {}", parameter(value));
    }
    Ok(())
}

fn parameter(value: &Value) -> String {
    const SHOWN: usize = 8;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Array(all) if all.is_empty() => "none".to_owned(),
        Value::Array(all) => {
            let mut items: Vec<_> = all.iter().take(SHOWN).map(text).collect();
            if all.len() > SHOWN {
                items.push(format!(".. ({} in all; `--output json` shows them)", all.len()));
            }
            items.join(", ")
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {}", parameter(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => text(other),
    }
}

fn print_filters(filters: &[FilterState]) -> Result<()> {
    if filters.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = filters
        .iter()
        .map(|filter| {
            let state = filter.drift.as_ref().map_or("ok".into(), ToString::to_string);
            let program = filter.program_id.map_or("-".into(), |id| id.to_string());
            vec![filter.filter.into(), filter.interface.clone(), program, state]
        })
        .collect();
    println!();
    output::table(&["FILTER", "INTERFACE", "PROGRAM", "STATE"], &rows)
}

fn print_counters(counters: &Map<String, Value>) -> Result<()> {
    let rows: Vec<_> = counters
        .iter()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(name, count)| vec![name.clone(), count.to_string()])
        .collect();
    output::table(&["COUNTER", "COUNT"], &rows)
}

pub(crate) fn counters(node: &Node, attachment: &Attachment) -> Result<Map<String, Value>> {
    let counters = Tables::open(node)?.counters(attachment.cookie)?;
    Ok(counters.into_iter().map(|(event, count)| (event.label().to_owned(), json!(count))).collect())
}

/// Counters of one container or of all.
pub(crate) fn stats(node: &Node, output: Output, id: Option<&str>) -> Result<ExitCode> {
    let mut attachments = output::resolve_all(node, id)?;
    // Interfaces of one container share the counters.
    attachments.dedup_by(|a, b| a.cookie == b.cookie);
    let mut values = Vec::new();
    for attachment in &attachments {
        let counters = counters(node, attachment)?;
        match output {
            Output::Json => values.push(json!({
                "containerId": attachment.id.container_id,
                "pod": attachment.pod,
                "counters": counters,
            })),
            Output::Text => {
                println!("{} {}", attachment.id.container_id, output::pod_name(attachment));
                print_counters(&counters)?;
            }
        }
    }
    if output == Output::Json {
        output::json(&values)?;
    }
    Ok(ExitCode::SUCCESS)
}
