//! `redirect install`, `uninstall`, `upgrade`, `repair` and `gc`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use redirect_user::attach::life;
use redirect_user::gc::Listed;
use redirect_user::kernel::install;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::repair::Repaired;
use redirect_user::{gc, inspect, repair, upgrade};
use serde_json::{Value, json};

use crate::output::{self, Output};

/// Loads and pins the programs; attach does that too when it finds none.
pub(crate) fn install(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let already = install::ensure(node, &lock)? == install::Ensured::Already;
    if !already {
        // Pods that were attached before have no entries in the new maps.
        print_repaired(&repair::repair(node, &lock, None)?);
    }
    match output {
        Output::Json => output::json(&json!({ "installed": true, "already": already }))?,
        Output::Text if already => println!("already installed below {}", node.bpffs.display()),
        Output::Text => println!("installed below {}", node.bpffs.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// `redirect uninstall`
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// Remove the redirection of running pods, too: they send in clear from then on.
    #[arg(long)]
    force: bool,
    /// The entry in the CNI configuration first, and the plugin when the last redirected pod is gone: the
    /// runtime calls it to delete pods until then. Run it again after that.
    #[arg(long, conflicts_with = "force")]
    pub(crate) node: bool,
    #[command(flatten)]
    pub(crate) place: crate::node::Place,
}

/// Detaches every pod and removes the programs.
pub(crate) fn uninstall(node: &Node, output: Output, args: &UninstallArgs) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    if !args.force {
        refuse_running(node)?;
    }
    let collected = gc::collect(node, &lock, |_| Listed::Forced)?;
    install::remove(node, &lock)?;
    let detached: Vec<_> = collected.removed.iter().map(|removed| &removed.container_id).collect();
    match output {
        Output::Json => output::json(&json!({ "detached": detached }))?,
        Output::Text => println!("detached {} and removed the programs", detached.len()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The order for a node is: its configuration, its pods, its programs.
fn refuse_running(node: &Node) -> Result<()> {
    let recorded = inspect::list(node)?;
    let running = recorded.iter().filter(|pod| life::runs(node, pod)).map(output::name);
    let unrecorded = gc::unrecorded_pods(node, &recorded)?
        .into_iter()
        .map(|id| format!("{id} (its record is not readable)"));
    let running: Vec<_> = running.chain(unrecorded).collect();
    if running.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = running.iter().take(5).map(String::as_str).collect();
    let more = if running.len() > names.len() { ", .." } else { "" };
    bail!(
        "{} running pods would send in clear: {}{more}. First take redirect-cni out of the node's CNI configuration \
         and drain the node, then uninstall; or give --force",
        running.len(),
        names.join(", ")
    )
}

/// Replaces the programs in place.
pub(crate) fn upgrade(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let upgraded = upgrade::upgrade(node, &lock)?;
    let failed = upgraded.repaired.iter().any(|pod| pod.error.is_some());
    match output {
        Output::Json => output::json(&json!({
            "replacedLinks": upgraded.replaced,
            "repaired": upgraded.repaired.iter().map(value).collect::<Vec<_>>(),
        }))?,
        Output::Text => {
            println!("replaced the program of {} links", upgraded.replaced);
            print_repaired(&upgraded.repaired);
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `redirect repair`
#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// Only this container or NAMESPACE/POD; all of the node otherwise.
    id: Option<String>,
}

/// Attaches pods again that are not as their records say.
pub(crate) fn repair(node: &Node, output: Output, args: &RepairArgs) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let mut repaired = Vec::new();
    match &args.id {
        None => repaired = repair::repair(node, &lock, None)?,
        Some(id) => {
            let mut containers: Vec<_> =
                output::resolve(node, id)?.into_iter().map(|found| found.id.container_id).collect();
            containers.dedup();
            for container in containers {
                repaired.extend(repair::repair(node, &lock, Some(&container))?);
            }
        }
    }
    match output {
        Output::Json => output::json(&repaired.iter().map(value).collect::<Vec<_>>())?,
        Output::Text if repaired.is_empty() => println!("nothing to repair"),
        Output::Text => print_repaired(&repaired),
    }
    let failed = repaired.iter().any(|pod| pod.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn value(pod: &Repaired) -> Value {
    json!({
        "containerId": pod.attachment.id.container_id,
        "pod": pod.attachment.pod,
        "drift": inspect::describe(&pod.drift),
        "error": pod.error.as_ref().map(ToString::to_string),
    })
}

fn print_repaired(repaired: &[Repaired]) {
    for pod in repaired {
        let (name, drift) = (output::name(&pod.attachment), inspect::describe(&pod.drift));
        match &pod.error {
            None => println!("repaired {name}: {drift}"),
            Some(error) => println!("cannot repair {name} ({drift}): {error}"),
        }
    }
}

/// Removes what belongs to pods that are gone.
pub(crate) fn gc(node: &Node, output: Output) -> Result<ExitCode> {
    let lock = NodeLock::acquire(node)?;
    let collected = gc::collect(node, &lock, |_| Listed::Unasked)?;
    match output {
        Output::Json => output::json(&json!({
            "containers": collected.removed.iter().map(|removed| &removed.container_id).collect::<Vec<_>>(),
            "removed": collected.removed,
            "orphans": collected.orphans,
            "cookies": collected.cookies,
        }))?,
        Output::Text if collected.removed.is_empty() && collected.cookies.is_empty() => {
            println!("nothing to collect");
        }
        Output::Text => {
            for removed in &collected.removed {
                let pod = removed.pod.as_ref().map_or_else(String::new, |pod| format!(", pod {pod}"));
                println!("removed {}{pod}: {}", removed.container_id, removed.why);
            }
            for cookie in &collected.cookies {
                println!("removed entries of network namespace {cookie}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
