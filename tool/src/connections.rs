//! `redirect connections`: captured connections with the destinations that the applications dialled.

use std::process::ExitCode;

use anyhow::Result;
use redirect_user::connections::{self, Connection};
use redirect_user::node::Node;
use serde_json::json;

use crate::output::{self, Output};

/// Prints the connections of one container or of all.
pub(crate) fn run(node: &Node, output: Output, id: Option<&str>) -> Result<ExitCode> {
    let mut attachments = output::resolve_all(node, id)?;
    // Interfaces of one container share the namespace.
    attachments.dedup_by(|a, b| a.cookie == b.cookie);
    let (mut values, mut rows) = (Vec::new(), Vec::new());
    for attachment in &attachments {
        for one in connections::of(node, attachment)? {
            values.push(json!({
                "containerId": attachment.id.container_id,
                "pod": attachment.pod,
                "client": one.client,
                "destination": one.destination,
                "sidecar": one.sidecar,
                "state": one.state,
            }));
            rows.push(row(&attachment.id.container_id, &one));
        }
    }
    match output {
        Output::Json => output::json(&values)?,
        Output::Text => {
            output::table(&["CONTAINER", "CLIENT", "DESTINATION", "SIDECAR", "STATE"], &rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(container: &str, one: &Connection) -> Vec<String> {
    // After the detour only the socket itself knows.
    let destination = one.destination.map_or("-".into(), |to| to.to_string());
    vec![container.into(), one.client.to_string(), destination, one.sidecar.to_string(), one.state.into()]
}
