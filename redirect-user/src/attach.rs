//! The heart of ADD and DEL.
//!
//! [`attach`] is a list of steps: [`plan`] finds out, [`record`] writes down what is going to be done before
//! it is done, then come the namespace, the map entries ([`entries`], [`tables`]) and the [`links`]. So
//! if it fails in between, [`detach`] can undo it; and undoing after an error is the same code as DEL.
//! Until the last link is there the pod has no process of its own, and until the configuration is in PODS the
//! programs leave it alone.

mod detach;
pub(crate) mod entries;
mod error;
mod full;
pub(crate) mod links;
mod plan;
pub mod record;
pub mod replan;
mod survey;
pub mod tables;

pub use self::detach::detach;
pub use self::error::Error;
pub use self::plan::Request;

use crate::attach::detach::{detach_stale, undo};
use crate::attach::plan::Planned;
use crate::attach::record::Attachment;
use crate::attach::tables::Tables;
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::node::Node;
use crate::node::fault;
use crate::node::lock::NodeLock;

/// Redirects a pod: all or nothing. Only a repeated call that fails leaves what the first one did, for
/// [`detach`].
///
/// A repeated call for the same container and interface converges to the same state. Links that a previous
/// sandbox of the same pod left on the cgroup are taken over, without a moment in which the cgroup has none.
///
/// # Errors
/// See [`Error`].
pub fn attach(node: &Node, lock: &NodeLock, request: &Request) -> Result<Attachment, Error> {
    let (cgroup, netns) = plan::open(request)?;
    install::ensure(node, lock)?;
    detach_stale(node, &request.id, netns.cookie())?;
    let mut planned = plan::plan(request, cgroup, netns)?;
    let repeated = keep_known_changes(node, &mut planned.attachment)?;
    fault::point("attach-record");
    planned.attachment.store(node)?;
    if let Err(error) = carry_out(node, &mut planned) {
        // The undo of everything above is what DEL does; its own failure must not hide the reason. But a pod
        // that was attached before may be running, and without its links it would send in clear: it is left
        // to DEL.
        if !repeated {
            let _ = undo(node, &planned.attachment);
        }
        return Err(error);
    }
    replan_siblings(node, lock, &planned.attachment);
    Ok(planned.attachment)
}

/// Another interface of the pod brings addresses and routes that concern the pod's other attachments, too.
/// What cannot be mended now is not this interface's fault; CHECK and `list` tell it.
fn replan_siblings(node: &Node, lock: &NodeLock, attachment: &Attachment) {
    let all = record::of_container(node, &attachment.id.container_id).unwrap_or_default();
    let is_sibling = |other: &&Attachment| other.id != attachment.id && other.cookie == attachment.cookie;
    for sibling in all.iter().filter(is_sibling) {
        if let Err(error) = replan::replan(node, lock, sibling) {
            tracing::warn!(ifname = sibling.id.ifname, %error, "cannot bring the other interface up to date");
        }
    }
}

/// A repeated attach finds its own routes in place; they stay its own. Whether it is one.
fn keep_known_changes(node: &Node, attachment: &mut Attachment) -> Result<bool, Error> {
    let known = record::of_container(node, &attachment.id.container_id)?;
    let Some(known) = known.into_iter().find(|known| known.id == attachment.id) else { return Ok(false) };
    let changes = &mut attachment.changes;
    changes.passthrough6 |= known.changes.passthrough6;
    changes.mptcp_disabled |= known.changes.mptcp_disabled;
    for route in known.changes.local_routes {
        if !changes.local_routes.contains(&route) {
            changes.local_routes.push(route);
        }
    }
    Ok(true)
}

/// The steps, in order; each of them may be repeated.
fn carry_out(node: &Node, planned: &mut Planned) -> Result<(), Error> {
    change_netns(planned)?;
    fault::point("attach-netns");
    write_tables(node, &planned.attachment)?;
    fault::point("attach-tables");
    links::make_folder(node, &planned.attachment)?;
    fault::point("attach-folder");
    for hook in Hook::needed(&planned.attachment.policy) {
        links::link(node, planned, hook)?;
        fault::point(&format!("attach-{hook}"));
    }
    Ok(())
}

fn change_netns(planned: &mut Planned) -> Result<(), Error> {
    let (changes, netns) = (&planned.attachment.changes, &mut planned.netns);
    if changes.passthrough6 {
        netns.add_passthrough6()?;
    }
    if changes.mptcp_disabled {
        netns.set_mptcp(false)?;
    }
    for route in &changes.local_routes {
        netns.add_local_route(route)?;
    }
    Ok(())
}

/// Makes the maps hold what this attachment says, and nothing that an earlier one of the same pod said.
fn write_tables(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let (config, entries) = entries::of(attachment);
    Ok(Tables::open(node)?.replace(attachment.cookie, &config, &entries)?)
}
