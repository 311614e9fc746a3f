//! The steps of ADD and DEL.
//!
//! [`attach`] is a list of steps: [`plan`] finds out, [`record`] writes down what is going to be done before
//! it is done, then come the namespace, the folder of pins, the map entries ([`entries`], [`tables`]) and the
//! [`links`]. So [`detach`] can undo it at every step; and undoing after an error is the same
//! code as DEL. Until the last link is there the pod has no process of its own, and until the configuration
//! is in PODS the programs leave it alone. What concerns the pod alone is done before the node's lock is
//! taken.

mod detach;
pub(crate) mod entries;
mod error;
pub mod full;
pub(crate) mod guard;
pub(crate) mod guarded;
pub mod life;
pub(crate) mod links;
pub(crate) mod listeners;
pub mod map;
mod plan;
pub mod record;
pub mod replan;
mod slots;
mod survey;
pub mod tables;

use std::collections::BTreeSet;

pub use self::detach::{detach, has_anything};
pub use self::error::Error;
pub use self::plan::Request;

use crate::attach::plan::Planned;
use crate::attach::record::{Attachment, NetnsChanges};
use crate::attach::tables::Tables;
use crate::kernel::hook::Hook;
use crate::kernel::install::{self, Ensured};
use crate::kernel::{pins, stamp};
use crate::node::Node;
use crate::node::fault;
use crate::node::lock::NodeLock;
use crate::pod::cgroup;
use crate::pod::netns::{Netns, TcpSocket};

/// What [`attach`] made.
#[derive(Debug)]
pub struct Attached {
    /// The record.
    pub attachment: Attachment,
    /// Whether the node had its programs; if not, the pods that were attached before need a repair.
    pub programs: Ensured,
}

/// Redirects a pod: all or nothing. Only a repeated call that fails leaves what the first one did, for
/// [`detach`].
///
/// A repeated call for the same container and interface converges to the same state. Links that a previous
/// sandbox of the same pod has on the cgroup are shared with it.
///
/// # Errors
/// See [`Error`].
pub fn attach(node: &Node, lock: &NodeLock, request: &Request) -> Result<Attachment, Error> {
    let (cgroup, netns) = plan::open(request)?;
    detach::detach_stale(node, lock, &request.id, netns.cookie())?;
    let begun = Begun::new(node, plan::plan(request, cgroup, netns)?)?;
    Ok(begun.finish(node, lock)?.attachment)
}

/// As [`attach`], for a pod that runs. The listeners that its sidecar has opened are made known before
/// anything is redirected, and once more afterwards: one may have come in between. Returns how many they are.
///
/// # Errors
/// See [`Error`]. When only the listeners fail, the pod stays attached: inbound connections are refused then
/// until the sidecar listens again.
pub fn attach_running(node: &Node, lock: &NodeLock, request: &Request) -> Result<(Attachment, usize), Error> {
    let attachment = attach(node, lock, request)?;
    let listeners = listeners::register(node, &attachment).map_err(|source| Error::Listeners { source })?;
    Ok((attachment, listeners))
}

/// As [`attach`], with the node's lock held for as short a time as possible: returns it with the result.
///
/// # Errors
/// See [`Error`].
pub fn attach_locking(node: &Node, request: &Request) -> Result<(Attached, NodeLock), Error> {
    let (cgroup, netns) = plan::open(request)?;
    if detach::stale(node, &request.id, netns.cookie())?.is_some() {
        let lock = NodeLock::acquire(node)?;
        detach::detach_stale(node, &lock, &request.id, netns.cookie())?;
    }
    let begun = Begun::new(node, plan::plan(request, cgroup, netns)?)?;
    match NodeLock::acquire(node) {
        Ok(lock) => Ok((begun.finish(node, &lock)?, lock)),
        Err(error) => {
            begun.abandon(node);
            Err(error.into())
        }
    }
}

/// Puts a pod's entries and the sidecar's listeners into the maps where they lack the pod, so that programs
/// which are going to run for it know it. A pod that they know is left alone.
///
/// # Errors
/// A map is full or not writable.
pub(crate) fn restore(node: &Node, _lock: &NodeLock, attachment: &Attachment) -> Result<(), Error> {
    if Tables::open(node)?.config(attachment.cookie)?.is_some() {
        return Ok(());
    }
    links::make_folder(node, attachment)?;
    tables::write(node, attachment)?;
    let listeners = listeners::register(node, attachment).map_err(|source| Error::Listeners { source })?;
    tracing::info!(container = attachment.id.container_id, listeners, "map entries are restored");
    Ok(())
}

/// A pod whose namespace is prepared and whose record is written: what can be done without the node's lock.
struct Begun {
    planned: Planned,
    /// It is attached already, by an earlier call.
    repeated: bool,
    /// What this call adds to the namespace.
    wanted: NetnsChanges,
}

impl Begun {
    fn new(node: &Node, mut planned: Planned) -> Result<Begun, Error> {
        // What an earlier call added is recorded for DEL, but not added again: an address may have gone
        // since.
        let wanted = planned.attachment.changes.clone();
        let repeated = keep_known_changes(node, &mut planned.attachment)?;
        fault::point("attach-record");
        planned.attachment.store(node)?;
        let mut begun = Begun { planned, repeated, wanted };
        if let Err(error) = change_netns(&mut begun.planned.netns, &begun.wanted) {
            begun.abandon(node);
            return Err(error);
        }
        fault::point("attach-netns");
        Ok(begun)
    }

    /// The rest, under the lock.
    fn finish(mut self, node: &Node, lock: &NodeLock) -> Result<Attached, Error> {
        // Another ADD or a DEL of the same attachment may have come in between; this call is the later one.
        self.repeated |= self.is_pinned(node);
        let begun = self.begin_again(node);
        match begun.and_then(|()| carry_out(node, lock, &mut self.planned)) {
            Ok(programs) => {
                replan_others(node, lock, &self.planned.attachment, self.repeated);
                Ok(Attached { attachment: self.planned.attachment, programs })
            }
            Err(error) => {
                // The undo of everything above is what DEL does; its own failure must not hide the reason.
                // But a pod that was attached before may be running, and without its links it would send in
                // clear: it is left to DEL.
                if !self.repeated {
                    let _ = detach::undo(node, lock, &self.planned.attachment);
                }
                Err(error)
            }
        }
    }

    /// What was done without the lock, once more if another call has changed the record.
    fn begin_again(&mut self, node: &Node) -> Result<(), Error> {
        if record::of(node, &self.planned.attachment.id)?.as_ref() == Some(&self.planned.attachment) {
            return Ok(());
        }
        keep_known_changes(node, &mut self.planned.attachment)?;
        self.planned.attachment.store(node)?;
        change_netns(&mut self.planned.netns, &self.wanted)
    }

    /// Whether an ADD of the same attachment has come as far as its pins.
    fn is_pinned(&self, node: &Node) -> bool {
        pins::current(node).has(&self.planned.attachment.id)
    }

    /// Takes back what was done without the lock.
    fn abandon(&self, node: &Node) {
        if !self.repeated && !self.is_pinned(node) {
            detach::forget_namespace(&self.planned.attachment);
            let _ = self.planned.attachment.forget(node);
        }
    }
}

/// Another interface of the pod brings addresses and routes that concern the pod's other attachments, too,
/// and a repeated call may find routes of its own that are obsolete. What cannot be mended now is not this
/// call's fault; CHECK and `list` tell it.
fn replan_others(node: &Node, lock: &NodeLock, attachment: &Attachment, itself: bool) {
    let all = record::of_container(node, &attachment.id.container_id).unwrap_or_default();
    let is_meant =
        |other: &&Attachment| other.cookie == attachment.cookie && (itself || other.id != attachment.id);
    for other in all.iter().filter(is_meant) {
        if let Err(error) = replan::replan(node, lock, other) {
            tracing::warn!(ifname = other.id.ifname, %error, "cannot bring the record up to date");
        }
    }
}

/// A repeated attach finds its own routes in place; they stay its own. Whether it is one.
fn keep_known_changes(node: &Node, attachment: &mut Attachment) -> Result<bool, Error> {
    for other in record::of_container(node, &attachment.id.container_id)? {
        if other.cookie == attachment.cookie {
            guard::keep_known(&mut attachment.guard, &other.guard);
        }
    }
    let Some(known) = record::of(node, &attachment.id)? else { return Ok(false) };
    let changes = &mut attachment.changes;
    changes.passthrough6 |= known.changes.passthrough6;
    if let Some(dns) = known.changes.dns {
        changes.dns.get_or_insert_default().take_over(&dns);
    }
    for route in known.changes.local_routes {
        if !changes.local_routes.contains(&route) {
            changes.local_routes.push(route);
        }
    }
    for path in known.made_cgroups {
        if !attachment.made_cgroups.contains(&path) {
            attachment.made_cgroups.push(path);
        }
    }
    Ok(true)
}

/// The steps, in order; each of them may be repeated. The folder comes first: it is the claim on the map
/// entries.
fn carry_out(node: &Node, lock: &NodeLock, planned: &mut Planned) -> Result<Ensured, Error> {
    let programs = install::ensure(node, lock)?;
    let (config, _) = entries::of(&planned.attachment);
    if let Some(lacking) = stamp::lacking(node, config.flags) {
        return Err(Error::Lacking(Box::new(lacking)));
    }
    links::make_folder(node, &planned.attachment)?;
    fault::point("attach-folder");
    tables::write(node, &planned.attachment)?;
    if let Err(error) = slots::take_along(node, &planned.attachment) {
        // Only connections that are being opened may suffer.
        tracing::warn!(%error, "the slots of another version cannot be taken along");
    }
    note_listening(node, planned)?;
    fault::point("attach-tables");
    for hook in Hook::needed(&planned.attachment.policy) {
        links::link(node, planned, hook, || forget_clients(node, planned, hook))?;
        fault::point(&format!("attach-{hook}"));
    }
    end_others(node, planned)?;
    guard::choose_entry(node, &mut planned.attachment)?;
    guard::apply(node, &planned.attachment, &mut planned.netns)?;
    if cgroup::populated(&planned.attachment.cgroup) {
        // The sidecar of a pod that runs has begun to listen when there was another map, or no program yet.
        match listeners::register(node, &planned.attachment) {
            Err(source) if programs == Ensured::Fresh => return Err(Error::Listeners { source }),
            Err(error) => tracing::warn!(%error, "the listeners of a running sidecar cannot be registered"),
            Ok(_) => {}
        }
    }
    Ok(programs)
}

/// Ends the hooks that an earlier policy of the pod needed, and this one does not: who makes a connection's
/// origin before who takes one.
fn end_others(node: &Node, planned: &Planned) -> Result<(), Error> {
    let needed: Vec<_> = Hook::needed(&planned.attachment.policy).collect();
    for hook in Hook::ALL.iter().rev().copied().filter(|hook| !needed.contains(hook)) {
        if links::give_up(node, planned, hook)? {
            forget_clients(node, planned, hook)?;
        }
    }
    Ok(())
}

/// Where `handover` does not run, nothing sees that a sidecar gives up: its client would be shown for another
/// connection with the same two ends, and would count for ever. So all are forgotten, of each pod of the
/// cgroup.
fn forget_clients(node: &Node, planned: &Planned, hook: Hook) -> Result<(), Error> {
    if hook != Hook::Handover {
        return Ok(());
    }
    Ok(Tables::open(node)?.forget_clients(planned.attachment.cgroup_id)?)
}

fn change_netns(netns: &mut Netns, changes: &NetnsChanges) -> Result<(), Error> {
    if changes.passthrough6 {
        netns.add_passthrough6()?;
    }
    for route in &changes.local_routes {
        netns.add_local_route(route)?;
    }
    if let Some(dns) = &changes.dns {
        netns.open_dns(dns)?;
    }
    Ok(())
}

/// A pod that is running already has sockets that no program has seen begin to listen. Those of the sidecar
/// are known before the first connection is for them, which would be refused otherwise.
fn note_listening(node: &Node, planned: &Planned) -> Result<(), Error> {
    let attachment = &planned.attachment;
    if !cgroup::populated(&attachment.cgroup) {
        return Ok(());
    }
    if let Err(error) = listeners::register(node, attachment) {
        // What needs them asks again at the end, and fails then.
        tracing::warn!(%error, "the listeners of a running sidecar cannot be registered yet");
    }
    let (first, last) = attachment.ephemeral_ports;
    let listening = planned.netns.tcp_sockets()?.into_iter().filter(TcpSocket::listens);
    let ports = listening.map(|socket| socket.own.port()).filter(|port| (first..=last).contains(port));
    let ports: BTreeSet<u16> = ports.collect();
    Ok(Tables::open(node)?.note_listening(attachment.cookie, &ports)?)
}
