//! `redirect install`, `uninstall`, `upgrade` and `gc`.

use std::process::ExitCode;

use anyhow::Result;
use redirect_user::kernel::install;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::{attach, gc, inspect, upgrade};
use serde_json::json;

use crate::output::{self, Output};

/// Loads and pins the programs; attach does that too when it finds none.
pub(crate) fn install(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let already = install::installed(node);
    install::ensure(node, &lock)?;
    match output {
        Output::Json => output::json(&json!({ "installed": true, "already": already }))?,
        Output::Text if already => println!("already installed below {}", node.bpffs.display()),
        Output::Text => println!("installed below {}", node.bpffs.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Detaches every pod and removes the programs.
pub(crate) fn uninstall(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let mut detached = Vec::new();
    for attachment in inspect::list(node)? {
        attach::detach(node, &lock, &attachment.id.container_id, Some(&attachment.id.ifname))?;
        detached.push(attachment.id.container_id);
    }
    gc::collect(node, &lock, |_| false)?;
    install::remove(node, &lock)?;
    match output {
        Output::Json => output::json(&json!({ "detached": detached }))?,
        Output::Text => println!("detached {} and removed the programs", detached.len()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces the programs in place.
pub(crate) fn upgrade(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let replaced = upgrade::upgrade(node, &lock)?;
    match output {
        Output::Json => output::json(&json!({ "replacedLinks": replaced }))?,
        Output::Text => println!("replaced the program of {replaced} links"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes what belongs to pods that are gone.
pub(crate) fn gc(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let collected = gc::collect(node, &lock, |_| true)?;
    match output {
        Output::Json => {
            output::json(&json!({ "containers": collected.containers, "cookies": collected.cookies }))?;
        }
        Output::Text if collected.containers.is_empty() && collected.cookies.is_empty() => {
            println!("nothing to collect");
        }
        Output::Text => {
            for id in &collected.containers {
                println!("removed {id}");
            }
            for cookie in &collected.cookies {
                println!("removed entries of network namespace {cookie}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
