//! `redirect explain`: what would happen to a connection, and why.

mod args;
mod manifest;
mod names;
mod words;

use std::process::ExitCode;

use anyhow::{Result, bail};
pub(crate) use args::Args;
pub(crate) use names::{ActorArgs, act};
use redirect_user::explain::{self, Explanation};
use redirect_user::node::Node;

use words::{value, words};

use crate::output::{self, Output};

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
        print(output, &args.outbound(attachment, dst))?;
        return Ok(ExitCode::SUCCESS);
    }
    let answers = names::resolve(attachment, dst)?;
    let explained: Vec<_> = answers.iter().map(|dst| (*dst, args.outbound(attachment, *dst))).collect();
    match output {
        Output::Json => {
            let values: Result<Vec<_>> = explained.iter().map(|(dst, one)| value(*dst, one)).collect();
            output::json(&values?)?;
        }
        Output::Text => explained.iter().for_each(|(dst, one)| println!("{dst}: {}", words(one))),
    }
    Ok(ExitCode::SUCCESS)
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
