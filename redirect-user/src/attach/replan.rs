//! A pod that changes while it lives: what is not covered yet, and bringing maps, routes and `::6` up to
//! date.
//!
//! [`replan`] compares the namespace with the record and mends what differs. ADD for another interface, CHECK
//! and `redirect repair` call it, and an agent that watches netlink may at any time: where nothing differs,
//! nothing is written. [`look`] tells the same without changing anything.

use std::net::IpAddr;

use serde::Serialize;

use crate::attach::error::Error;
use crate::attach::record::{Attachment, NetnsChanges};
use crate::attach::survey::{MOST_ADDRESSES, Survey, survey};
use crate::attach::{guard, tables};
use crate::kernel::pins;
use crate::node::Node;
use crate::node::lock::NodeLock;
use crate::pod::netns::{self, Ipv6, LocalRoute, Netns};
use crate::pod::routes::Inexpressible;
use crate::policy::parameters::EXCLUDE_INTERFACES;

/// A difference between a pod and its record that [`replan`] mends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Stale {
    /// An address came after ADD: the application's own calls to it go to the sidecar.
    AddressCame {
        /// Which.
        address: IpAddr,
    },
    /// An address went away, and still counts as the pod's own.
    AddressWent {
        /// Which.
        address: IpAddr,
    },
    /// Interfaces that the policy excludes came or went.
    InterfacesDiffer,
    /// Connections leave by excluded interfaces for other destinations than before.
    RoutesDiffer,
    /// The guard does not stand on an interface that came after ADD, or is not as it was left there.
    Unguarded {
        /// The interface.
        interface: String,
    },
    /// `::6` is not on `lo`: the sidecar cannot dial the application over IPv6.
    NoPassthrough6,
    /// The local route to the sidecar is missing, or is another address's.
    LocalRoute {
        /// The address that should be the client's.
        source: IpAddr,
    },
    /// A local route to the sidecar is for an address that cannot be the client's any more.
    ObsoleteRoute {
        /// The address.
        source: IpAddr,
    },
}

impl Stale {
    /// Whether this is worth an operator's attention. The kernel gives every interface a link-local address
    /// by itself, some time after the interface is up, so almost every pod with IPv6 gets one right after
    /// ADD. The next [`replan`] takes it in.
    #[must_use]
    pub fn is_news(&self) -> bool {
        !matches!(
            self,
            Stale::AddressCame { address: IpAddr::V6(ip) } | Stale::AddressWent { address: IpAddr::V6(ip) }
                if ip.is_unicast_link_local()
        )
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stale::AddressCame { address } => write!(f, "the address {address} came after ADD"),
            Stale::AddressWent { address } => write!(f, "the address {address} went away"),
            Stale::InterfacesDiffer => write!(f, "an interface of {EXCLUDE_INTERFACES} came or went"),
            Stale::RoutesDiffer => {
                write!(f, "the routes through the interfaces of {EXCLUDE_INTERFACES} have changed")
            }
            Stale::Unguarded { interface } => write!(f, "the guard does not stand on {interface}"),
            Stale::NoPassthrough6 => write!(f, "::6 is not on lo"),
            Stale::LocalRoute { source } => {
                write!(f, "the local route to the sidecar for the address {source} is missing")
            }
            Stale::ObsoleteRoute { source } => write!(
                f,
                "there is a local route to the sidecar for {source}, which cannot be the client's address any more"
            ),
        }
    }
}

/// What a pod is like that cannot be mended here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Remark {
    /// The policy excludes an interface that the pod does not have.
    InterfaceAbsent {
        /// Its name.
        name: String,
    },
    /// The routes that came after ADD cannot be followed; those of the record stay in force.
    RoutesNotFollowed {
        /// Why.
        problem: String,
    },
    /// IPv6 is off on `lo`.
    NoIpv6OnLo,
    /// The pod has more addresses than are kept; those of the record stay in force.
    TooManyAddresses {
        /// How many.
        count: usize,
    },
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Remark::InterfaceAbsent { name } => {
                write!(f, "{EXCLUDE_INTERFACES} names {name}, which the pod does not have (yet)")
            }
            Remark::RoutesNotFollowed { problem } => write!(f, "{EXCLUDE_INTERFACES}: {problem}"),
            Remark::NoIpv6OnLo => write!(
                f,
                "net.ipv6.conf.lo.disable_ipv6 is 1 in the pod, so IPv6 cannot go through the sidecar; set it to 0"
            ),
            Remark::TooManyAddresses { count } => {
                write!(f, "the pod has {count} addresses, and {MOST_ADDRESSES} are kept")
            }
        }
    }
}

/// How well a record fits its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// What [`replan`] would mend.
    pub stale: Vec<Stale>,
    /// What it cannot.
    pub remarks: Vec<Remark>,
}

/// Compares a pod with its record; all is well with a pod whose namespace is gone.
///
/// # Errors
/// The namespace does not answer.
pub fn look(attachment: &Attachment) -> Result<Coverage, Error> {
    match open(attachment)? {
        Some(mut netns) => Ok(compare(attachment, &mut netns)?.0),
        None => Ok(Coverage::default()),
    }
}

/// Brings record, maps and namespace up to date, and says what was mended and what cannot be.
///
/// # Errors
/// The namespace cannot be changed, or the maps or the record cannot be written. What was written is the
/// newer state, and a second call goes on from there.
pub fn replan(node: &Node, _lock: &NodeLock, attachment: &Attachment) -> Result<Coverage, Error> {
    let Some(mut netns) = open(attachment)? else { return Ok(Coverage::default()) };
    let (mut coverage, found) = compare(attachment, &mut netns)?;
    // A pod of another version is not in this one's maps, where a filter of this one would look for it, and
    // refuse everything. It is brought over first, which plans it again; nothing is mended until then.
    if !pins::current(node).has(&attachment.id) {
        coverage.stale.clear();
    }
    if !coverage.stale.is_empty() {
        let mut updated = updated(attachment, found);
        guard::replan(node, &mut updated, &mut netns)?;
        carry_out(node, &mut netns, attachment, updated)?;
    }
    Ok(coverage)
}

/// The pod's namespace, if it is still the recorded one.
fn open(attachment: &Attachment) -> Result<Option<Netns>, Error> {
    if !attachment.of_this_boot() {
        return Ok(None);
    }
    match Netns::open(&attachment.netns) {
        Ok(netns) if netns.cookie() == attachment.cookie => Ok(Some(netns)),
        Ok(_) | Err(netns::Error::Enter { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The differences, and the survey that shows them.
fn compare(attachment: &Attachment, netns: &mut Netns) -> Result<(Coverage, Survey), Error> {
    let mut preferred: Vec<IpAddr> =
        attachment.changes.local_routes.iter().map(|route| route.source).collect();
    preferred.extend(&attachment.addresses);
    let found = survey(netns, &attachment.policy, &preferred)?;
    let mut stale = Vec::new();
    let mut remarks = Vec::new();
    if found.addresses.len() > MOST_ADDRESSES {
        remarks.push(Remark::TooManyAddresses { count: found.addresses.len() });
    } else {
        stale.extend(addresses(&attachment.addresses, &found.addresses));
    }
    if attachment.excluded_interfaces != found.excluded_interfaces {
        stale.push(Stale::InterfacesDiffer);
    }
    match &found.interface_routes {
        Ok(routes) if *routes != attachment.interface_routes => stale.push(Stale::RoutesDiffer),
        Ok(_) => {}
        Err(problem) => remarks.push(not_followed(problem)),
    }
    let unguarded = guard::unguarded(attachment, &found.excluded_interfaces, netns)?;
    stale.extend(unguarded.into_iter().map(|interface| Stale::Unguarded { interface }));
    if found.passthrough6 && !netns.has_passthrough6()? {
        stale.push(Stale::NoPassthrough6);
    }
    stale.extend(routes(attachment, &found, netns)?);
    remarks.extend(found.absent_interfaces.iter().map(|name| Remark::InterfaceAbsent { name: name.clone() }));
    if found.ipv6 == Ipv6::NotOnLo {
        remarks.push(Remark::NoIpv6OnLo);
    }
    Ok((Coverage { stale, remarks }, found))
}

fn addresses(recorded: &[IpAddr], found: &[IpAddr]) -> Vec<Stale> {
    let came = found.iter().filter(|ip| !recorded.contains(ip));
    let went = recorded.iter().filter(|ip| !found.contains(ip));
    came.map(|ip| Stale::AddressCame { address: *ip })
        .chain(went.map(|ip| Stale::AddressWent { address: *ip }))
        .collect()
}

fn not_followed(problem: &Inexpressible) -> Remark {
    Remark::RoutesNotFollowed { problem: problem.to_string() }
}

/// A route for a tentative address that has become valid does as well as the one that would be made now.
fn routes(attachment: &Attachment, found: &Survey, netns: &mut Netns) -> Result<Vec<Stale>, Error> {
    let recorded = &attachment.changes.local_routes;
    let mut stale = Vec::new();
    for wanted in &found.local_routes {
        let there = recorded.iter().find(|route| route.source == wanted.source);
        if !there.is_some_and(|route| netns.has_local_route(route).unwrap_or(false)) {
            stale.push(Stale::LocalRoute { source: wanted.source });
        }
    }
    let wanted = |source: IpAddr| found.local_routes.iter().any(|route| route.source == source);
    let obsolete = recorded.iter().map(|route| route.source).filter(|source| !wanted(*source));
    stale.extend(obsolete.map(|source| Stale::ObsoleteRoute { source }));
    Ok(stale)
}

/// The record as it should be. Routes that are there already keep their form, and obsolete ones are left out.
fn updated(attachment: &Attachment, found: Survey) -> Attachment {
    let recorded = &attachment.changes.local_routes;
    let keep = |wanted: LocalRoute| {
        recorded.iter().find(|route| route.source == wanted.source).cloned().unwrap_or(wanted)
    };
    let too_many = found.addresses.len() > MOST_ADDRESSES;
    Attachment {
        addresses: if too_many { attachment.addresses.clone() } else { found.addresses },
        excluded_interfaces: found.excluded_interfaces,
        interface_routes: found.interface_routes.unwrap_or_else(|_| attachment.interface_routes.clone()),
        lo_excluded: found.lo_excluded,
        changes: NetnsChanges {
            passthrough6: attachment.changes.passthrough6 || found.passthrough6,
            local_routes: found.local_routes.into_iter().map(keep).collect(),
            ..attachment.changes.clone()
        },
        ..attachment.clone()
    }
}

/// The record goes first and names old and new routes, so that DEL finds all of them, whenever this is
/// interrupted.
fn carry_out(
    node: &Node,
    netns: &mut Netns,
    attachment: &Attachment,
    mut updated: Attachment,
) -> Result<(), Error> {
    let wanted = updated.changes.local_routes.clone();
    let recorded = &attachment.changes.local_routes;
    let obsolete: Vec<_> = recorded.iter().filter(|route| !wanted.contains(route)).cloned().collect();
    updated.changes.local_routes.extend(obsolete.iter().cloned());
    updated.store(node)?;
    updated.changes.local_routes.clone_from(&wanted);
    if updated.changes.passthrough6 && netns.settings()?.ipv6 == Ipv6::On {
        netns.add_passthrough6()?;
    }
    for route in &wanted {
        netns.add_local_route(route)?;
    }
    tables::write(node, &updated)?;
    for route in &obsolete {
        netns.remove_local_route(route)?;
    }
    updated.store(node)?;
    Ok(())
}
