//! The guard of a pod: which interfaces it stands on, which entry of GUARD its filters name, and whether all
//! of it is there.
//!
//! The filters hold their programs, and these the maps. So without a bpffs, too, the pod's interfaces
//! stay guarded until [`withdraw`] takes the filters away, or the interface goes.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};

use redirect_common::GuardedPod;

use crate::attach::error::Error;
use crate::attach::guarded::Guarded;
use crate::attach::record::{self, Attachment, GuardRecord, GuardedInterface};
use crate::kernel::filter::Filter;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::node::fault;
use crate::pod::inhabited;
use crate::pod::netns::{Interface, Netns};
use crate::policy::Guard;

/// A filter that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not there.
    Gone,
    /// It runs another program than the installed one.
    OtherProgram,
    /// It names another entry of GUARD.
    OtherPod,
}

/// A filter, its interface, the program that it runs, and what is wrong.
pub(crate) type State = (Filter, String, Option<u32>, Option<Fault>);

/// Where a pod's guard has to stand, found out before anything is changed. Interfaces that the policy
/// excludes have none.
///
/// # Errors
/// The namespace does not answer, or an interface has a qdisc that cannot be shared.
pub(crate) fn plan(netns: &mut Netns, guard: Guard, excluded: &[u32]) -> Result<GuardRecord, Error> {
    if guard == Guard::Off {
        return Ok(GuardRecord::default());
    }
    let mut interfaces = Vec::new();
    let outward = netns.outward_interfaces()?;
    let qdiscs = netns.filter_qdiscs()?;
    for interface in outward.into_iter().filter(|interface| !excluded.contains(&interface.index)) {
        let qdisc = qdiscs.get(&interface.index);
        if qdisc.is_some_and(|kind| kind != "clsact") {
            return Err(Error::ForeignQdisc { interface: interface.name });
        }
        interfaces.push(GuardedInterface {
            index: interface.index,
            name: interface.name,
            made_qdisc: qdisc.is_none(),
        });
    }
    Ok(GuardRecord { index: 0, interfaces })
}

/// What an earlier attach of the same pod knows: its entry, and which qdiscs it made.
pub(crate) fn keep_known(record: &mut GuardRecord, known: &GuardRecord) {
    if record.interfaces.is_empty() {
        return;
    }
    record.index = known.index;
    for watched in &mut record.interfaces {
        watched.made_qdisc |=
            known.interfaces.iter().any(|other| other.index == watched.index && other.made_qdisc);
    }
}

/// Finds an entry of GUARD for the pod, and writes the record that names it.
///
/// # Errors
/// The map cannot be read, every entry is taken, or the record cannot be written.
pub(crate) fn choose_entry(node: &Node, attachment: &mut Attachment) -> Result<(), Error> {
    if attachment.guard.interfaces.is_empty() {
        return Ok(());
    }
    let known = attachment.guard.index;
    let index = Guarded::open(node)?.entry_of(attachment.cookie, known)?;
    if index != known {
        attachment.guard.index = index;
        attachment.store(node)?;
    }
    Ok(())
}

/// Puts the filters on the pod's interfaces, and the pod into GUARD. To be repeated whenever the pod's
/// interfaces have changed: it converges to what the record says.
///
/// # Errors
/// A map, a program or an interface.
pub(crate) fn apply(node: &Node, attachment: &Attachment, netns: &mut Netns) -> Result<(), Error> {
    if attachment.guard.interfaces.is_empty() {
        return withdraw(node, attachment, netns);
    }
    Guarded::open(node)?.set(attachment.guard.index, &entry(attachment))?;
    fault::point("attach-guard");
    let open = |filter: Filter| -> Result<OwnedFd, Error> {
        sys::obj_get(&pins::current(node).filter(filter)).map_err(|source| Error::Filter { filter, source })
    };
    let programs = (open(Filter::Egress)?, open(Filter::Ingress)?);
    let classid = u16::try_from(attachment.guard.index).unwrap_or(0);
    for watched in &attachment.guard.interfaces {
        let interface = Interface { index: watched.index, name: watched.name.clone() };
        let programs = [(Filter::Egress, programs.0.as_fd()), (Filter::Ingress, programs.1.as_fd())];
        netns.put_filters(&interface, programs, classid)?;
    }
    remove_from_others(attachment, netns)?;
    fault::point("attach-filters");
    Ok(())
}

/// Filters of ours on interfaces on which they are not wanted any more.
fn remove_from_others(attachment: &Attachment, netns: &mut Netns) -> Result<(), Error> {
    let wanted: BTreeSet<u32> = attachment.guard.interfaces.iter().map(|watched| watched.index).collect();
    let others: Vec<u32> =
        netns.filter_qdiscs()?.into_keys().filter(|index| !wanted.contains(index)).collect();
    for index in others {
        netns.remove_filters(index, false)?;
    }
    Ok(())
}

/// Brings the guard to the interfaces that a running pod has now: those that came later get their filters,
/// and the record says so before they are there. For every caller that plans a pod again.
///
/// # Errors
/// The namespace does not answer, the record cannot be written, or as [`apply`].
pub(crate) fn replan(node: &Node, attachment: &mut Attachment, netns: &mut Netns) -> Result<(), Error> {
    let mut planned = plan(netns, attachment.policy.guard, &attachment.excluded_interfaces)?;
    keep_known(&mut planned, &attachment.guard);
    attachment.guard = planned;
    choose_entry(node, attachment)?;
    attachment.store(node)?;
    apply(node, attachment, netns)
}

/// The interfaces by which packets leave the pod without meeting the guard, by name.
///
/// # Errors
/// The namespace does not answer.
pub(crate) fn unguarded(
    attachment: &Attachment,
    excluded: &[u32],
    netns: &mut Netns,
) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    if attachment.policy.guard == Guard::Off {
        return Ok(names);
    }
    let outward = netns.outward_interfaces()?.into_iter();
    for interface in outward.filter(|interface| !excluded.contains(&interface.index)) {
        for filter in Filter::ALL {
            let found = netns.filters(interface.index, filter)?.ours;
            if found.is_none_or(|found| found.index != attachment.guard.index) {
                names.push(interface.name.clone());
                break;
            }
        }
    }
    Ok(names)
}

/// Gives the filters of a running pod the installed programs. A pod whose namespace is gone has none.
///
/// # Errors
/// A program or an interface.
pub(crate) fn renew(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let netns = Netns::open(&attachment.netns).ok().filter(|netns| netns.cookie() == attachment.cookie);
    match netns {
        Some(mut netns) => replan(node, &mut attachment.clone(), &mut netns),
        None => Ok(()),
    }
}

/// Takes the guard away: the filters from every interface that has them, then the entry.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn withdraw(node: &Node, attachment: &Attachment, netns: &mut Netns) -> Result<(), Error> {
    for index in netns.filter_qdiscs()?.into_keys() {
        let made =
            attachment.guard.interfaces.iter().any(|watched| watched.index == index && watched.made_qdisc);
        netns.remove_filters(index, made)?;
    }
    fault::point("detach-filters");
    free(node, attachment)
}

/// Frees the pod's entry: its filters are gone, or its namespace is.
///
/// # Errors
/// The map cannot be changed.
pub(crate) fn free(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    // A node without our maps has no entry to free.
    let Ok(mut guarded) = Guarded::open(node) else { return Ok(()) };
    Ok(guarded.free(attachment.guard.index, attachment.cookie)?)
}

/// Frees entries of pods that have another one by their record, and those of pods that neither a record nor a
/// pin names and whose network namespace has no process. Where not every process is to be seen, the latter
/// stay: a filter without its entry refuses everything, and an entry of another pod's is the wrong policy.
///
/// # Errors
/// A record or the map cannot be read, or the map cannot be changed.
pub(crate) fn free_unclaimed(node: &Node, claimed: &BTreeSet<u64>) -> Result<(), Error> {
    let recorded: BTreeMap<u64, u32> = record::all(node)?
        .into_iter()
        .map(|attachment| (attachment.cookie, attachment.guard.index))
        .collect();
    // To look at every process takes a while, and there is seldom a reason.
    let inhabited = LazyCell::new(inhabited::namespaces);
    let kept = |index: u32, cookie: u64| match recorded.get(&cookie) {
        Some(recorded) => *recorded == index,
        None => {
            claimed.contains(&cookie)
                || inhabited.as_ref().is_none_or(|inhabited| inhabited.contains(&cookie))
        }
    };
    Ok(Guarded::open(node)?.free_unclaimed(kept)?)
}

/// What GUARD holds for an attachment.
pub(crate) fn entry(attachment: &Attachment) -> GuardedPod {
    GuardedPod {
        cookie: attachment.cookie,
        proxy_uid: attachment.policy.proxy.uid,
        audit: u32::from(attachment.policy.guard == Guard::Audit),
    }
}

/// Every filter that the record names, and what is wrong with it.
///
/// # Errors
/// The namespace does not answer.
pub(crate) fn inspect(node: &Node, attachment: &Attachment, netns: &mut Netns) -> Result<Vec<State>, Error> {
    let mut states = Vec::new();
    for watched in &attachment.guard.interfaces {
        for filter in Filter::ALL {
            let found = netns.filters(watched.index, filter)?.ours;
            let installed = installed(node, filter).ok();
            let fault = match found {
                None => Some(Fault::Gone),
                Some(found) if Some(found.program_id) != installed => Some(Fault::OtherProgram),
                Some(found) if found.index != attachment.guard.index => Some(Fault::OtherPod),
                Some(_) => None,
            };
            states.push((filter, watched.name.clone(), found.map(|found| found.program_id), fault));
        }
    }
    Ok(states)
}

/// Whether GUARD holds for an attachment what it should.
///
/// # Errors
/// The map cannot be read.
pub(crate) fn entered(node: &Node, attachment: &Attachment) -> Result<bool, Error> {
    let index = attachment.guard.index;
    Ok(index == 0 || Guarded::open(node)?.get(index)? == entry(attachment))
}

fn installed(node: &Node, filter: Filter) -> Result<u32, SyscallError> {
    sys::obj_get(&pins::current(node).filter(filter)).and_then(sys::program_id)
}
