//! `redirect flows`: which pods of this node talk to which addresses, and by which verdict. It is a trace for
//! some seconds, summed up.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use redirect_user::node::Node;
use serde_json::json;

use crate::output::{self, Output};
use crate::page;
use crate::seen::{Flow, Seen};
use crate::trace;

/// `redirect flows`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this container (or a unique beginning of its id, or NAMESPACE/POD).
    id: Option<String>,
    /// How long to look.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Write a page for a browser instead.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// With --html: look again and write the page again, until Ctrl-C. The browser reads it again by itself.
    #[arg(long, requires = "html")]
    follow: bool,
}

/// Looks, and prints or writes.
pub(crate) fn run(node: &Node, output: Output, args: &Args) -> Result<ExitCode> {
    loop {
        let (seen, ended) = trace::collect(node, args.id.as_deref(), args.seconds)?;
        let Some(file) = &args.html else { return print(output, &seen) };
        page::write(file, &page::mesh::draw(&seen, args.follow.then_some(args.seconds)))?;
        if !args.follow || ended {
            println!("{} shows {} connections", file.display(), seen.sum());
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn print(output: Output, seen: &Seen) -> Result<ExitCode> {
    let flows = seen.busiest();
    match output {
        Output::Json => {
            let values: Vec<_> =
                flows.iter().map(|(flow, count)| json!({ "flow": flow, "connections": count })).collect();
            output::json(&json!({ "flows": values, "lost": seen.lost, "seconds": seen.seconds }))?;
        }
        Output::Text => {
            let row = |(flow, count): &(&Flow, u64)| {
                vec![
                    flow.from.clone(),
                    flow.to.clone(),
                    flow.verdict.into(),
                    flow.rule.into(),
                    count.to_string(),
                ]
            };
            let rows: Vec<_> = flows.iter().map(row).collect();
            output::table(&["FROM", "TO", "VERDICT", "RULE", "CONNECTIONS"], &rows)?;
            if seen.lost > 0 {
                println!("{} more came faster than they could be read", seen.lost);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
