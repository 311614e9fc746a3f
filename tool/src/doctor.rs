//! `redirect doctor`: each thing that this node needs, tried rather than guessed from version numbers.

use std::process::ExitCode;

use anyhow::Result;
use redirect_user::doctor::{self, Finding};
use redirect_user::node::Node;

use crate::output::{self, Output};

/// Examines the node; fails when a requirement is missing.
pub(crate) fn run(node: &Node, output: Output) -> Result<ExitCode> {
    let findings = doctor::examine(node);
    match output {
        Output::Json => output::json(&findings)?,
        Output::Text => {
            let rows: Vec<_> = findings
                .iter()
                .map(|finding| {
                    let state = if finding.found { "found" } else { "missing" };
                    vec![finding.requirement.into(), state.into(), finding.detail.clone(), remedy(finding)]
                })
                .collect();
            output::table(&["REQUIREMENT", "STATE", "DETAIL", "WHAT TO DO"], &rows)?;
        }
    }
    let complete = findings.iter().all(|finding| finding.found);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn remedy(finding: &Finding) -> String {
    if finding.found { String::new() } else { finding.remedy.into() }
}
