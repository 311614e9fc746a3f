//! The pod's namespace as far as its map entries and its local routes depend on it.
//!
//! ADD takes a survey, and every later look at the pod takes another one and compares: addresses, interfaces
//! and routes come and go while a pod lives.

use std::collections::BTreeSet;
use std::net::IpAddr;

use redirect_common::addr::Family;

use crate::pod::netns::{self, Address, DnsChanges, Interface, Ipv6, LocalRoute, Netns, Settings};
use crate::pod::routes::{self, Inexpressible, PrefixVerdict};
use crate::policy::Policy;

/// How many addresses of a pod are kept. A pod may add some by itself; what it cannot do is to fill the
/// node's table.
pub(super) const MOST_ADDRESSES: usize = 1024;

/// The name of the loopback interface.
const LO: &str = "lo";

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// The pod's own addresses but loopback, in order.
    pub(crate) addresses: Vec<IpAddr>,
    /// Indices of the interfaces that the policy excludes.
    pub(crate) excluded_interfaces: Vec<u32>,
    /// Names of interfaces that the policy excludes and the pod does not have.
    pub(crate) absent_interfaces: Vec<String>,
    /// Where connections leave by excluded interfaces.
    pub(crate) interface_routes: Result<Vec<PrefixVerdict>, Inexpressible>,
    /// `lo` itself is excluded.
    pub(crate) lo_excluded: bool,
    /// `::6` belongs on `lo`.
    pub(crate) passthrough6: bool,
    /// The local routes that the pod should have.
    pub(crate) local_routes: Vec<LocalRoute>,
    /// What DNS capture needs in the namespace, where the policy captures it.
    pub(crate) dns: Option<DnsChanges>,
    /// How far the pod has IPv6.
    pub(crate) ipv6: Ipv6,
    /// First and last port of outgoing connections.
    pub(crate) ephemeral_ports: (u16, u16),
}

/// Looks at a namespace. Of several addresses of a family the first in `preferred` becomes the client's.
///
/// # Errors
/// The kernel does not answer.
pub(crate) fn survey(
    netns: &mut Netns,
    policy: &Policy,
    preferred: &[IpAddr],
) -> Result<Survey, netns::Error> {
    let found = netns.addresses()?;
    let interfaces = Excluded::find(netns, policy)?;
    let interface_routes = interface_routes(netns, policy, &interfaces.indices)?;
    let Settings { ephemeral_ports, ipv6 } = netns.settings()?;
    let families: &[Family] = if ipv6 == Ipv6::NotOnLo { &[Family::V4] } else { &Family::ALL };
    let local_routes: Vec<_> =
        families.iter().filter_map(|family| local_route(preferred, &found, *family)).collect();
    Ok(Survey {
        addresses: own(&found),
        excluded_interfaces: interfaces.indices,
        absent_interfaces: interfaces.absent,
        interface_routes,
        lo_excluded: policy.exclude_interfaces.iter().any(|name| name == LO),
        passthrough6: ipv6 == Ipv6::On,
        dns: policy.dns_capture.then(|| DnsChanges::new(&found, &local_routes)),
        local_routes,
        ipv6,
        ephemeral_ports,
    })
}

/// Every address that the kernel delivers to the pod itself, tentative ones included.
fn own(found: &[Address]) -> Vec<IpAddr> {
    let addresses = found.iter().map(|address| address.net.addr());
    let sorted: BTreeSet<IpAddr> = addresses.filter(|ip| !ip.is_loopback()).collect();
    sorted.into_iter().collect()
}

/// The route for the pod's address of a family: the first that is preferred and usable, else the first that
/// is usable, else, for IPv6, one that will be as soon as duplicate address detection is over.
fn local_route(preferred: &[IpAddr], found: &[Address], family: Family) -> Option<LocalRoute> {
    let of_family =
        |address: &&Address| address.global && !address.failed && Family::of(&address.net.addr()) == family;
    let pick = |tentative: bool| {
        let usable = || found.iter().filter(of_family).filter(move |address| address.tentative == tentative);
        let named = preferred.iter().find_map(|ip| usable().find(|address| address.net.addr() == *ip));
        named.or_else(|| usable().next())
    };
    let settled = pick(false).map(|address| LocalRoute { source: address.net.addr(), tentative_on: None });
    settled.or_else(|| {
        let address = pick(true)?;
        Some(LocalRoute { source: address.net.addr(), tentative_on: Some(address.interface) })
    })
}

/// The interfaces that `excludeInterfaces` names.
struct Excluded {
    indices: Vec<u32>,
    absent: Vec<String>,
}

impl Excluded {
    /// Asks the namespace only where an annotation names an interface.
    fn find(netns: &mut Netns, policy: &Policy) -> Result<Excluded, netns::Error> {
        let names = || policy.exclude_interfaces.iter().filter(|name| *name != LO);
        if names().next().is_none() {
            return Ok(Excluded { indices: Vec::new(), absent: Vec::new() });
        }
        let interfaces = netns.interfaces()?;
        let named = |interface: &&Interface| names().any(|name| *name == interface.name);
        let is_there = |name: &&String| interfaces.iter().any(|interface| interface.name == **name);
        Ok(Excluded {
            indices: interfaces.iter().filter(named).map(|interface| interface.index).collect(),
            absent: names().filter(|name| !is_there(name)).cloned().collect(),
        })
    }
}

fn interface_routes(
    netns: &mut Netns,
    policy: &Policy,
    excluded: &[u32],
) -> Result<Result<Vec<PrefixVerdict>, Inexpressible>, netns::Error> {
    if policy.exclude_interfaces.iter().all(|name| name == LO) {
        return Ok(Ok(Vec::new()));
    }
    let rules = netns.rules()?;
    let routes = if excluded.is_empty() { Vec::new() } else { netns.routes()? };
    Ok(routes::verdicts(&routes, &rules, &excluded.iter().copied().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(net: &str, interface: u32) -> Address {
        Address { interface, net: net.parse().unwrap(), global: true, tentative: false, failed: false }
    }

    fn source(preferred: &[&str], found: &[Address], family: Family) -> Option<(String, Option<u32>)> {
        let preferred: Vec<IpAddr> = preferred.iter().map(|ip| ip.parse().unwrap()).collect();
        local_route(&preferred, found, family).map(|route| (route.source.to_string(), route.tentative_on))
    }

    #[test]
    fn the_clients_address_is_the_preferred_one_that_the_kernel_accepts() {
        let found = [address("10.1.0.2/16", 2), address("10.2.0.2/16", 3), address("fd01::2/64", 2)];
        assert_eq!(source(&[], &found, Family::V4), Some(("10.1.0.2".to_owned(), None)));
        assert_eq!(
            source(&["10.9.9.9", "10.2.0.2"], &found, Family::V4),
            Some(("10.2.0.2".to_owned(), None))
        );
        assert_eq!(source(&[], &found, Family::V6), Some(("fd01::2".to_owned(), None)));
        assert_eq!(source(&[], &found[..2], Family::V6), None);
    }

    #[test]
    fn a_tentative_address_is_used_where_there_is_no_other_and_a_failed_one_never() {
        let tentative = Address { tentative: true, ..address("fd01::2/64", 2) };
        let failed = Address { failed: true, ..address("fd01::3/64", 2) };
        assert_eq!(
            source(&[], std::slice::from_ref(&tentative), Family::V6),
            Some(("fd01::2".to_owned(), Some(2)))
        );
        let found = [tentative, failed.clone(), address("fd02::2/64", 3)];
        assert_eq!(source(&["fd01::2"], &found, Family::V6), Some(("fd02::2".to_owned(), None)));
        assert_eq!(source(&["fd01::3"], &[failed], Family::V6), None);
    }
}
