//! `redirect outcomes`: how the plugin decided about the pods that it was called for since the boot.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use redirect_user::node::Node;
use redirect_user::node::outcomes;

use crate::output::{self, Output};

/// Prints each outcome with its count: `enrolled`, a reason why not, or `failed_` with an error code.
pub(crate) fn run(node: &Node, output: Output) -> Result<ExitCode> {
    let counts = outcomes::counts(node)
        .with_context(|| format!("read the outcomes in the state directory {}", node.state_dir.display()))?;
    match output {
        Output::Json => output::json(&counts)?,
        Output::Text if counts.is_empty() => println!("the plugin was not called yet"),
        Output::Text => counts.iter().for_each(|(outcome, count)| println!("{count:>8}  {outcome}")),
    }
    Ok(ExitCode::SUCCESS)
}
