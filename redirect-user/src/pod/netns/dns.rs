//! What DNS capture changes in the pod's network namespace.
//!
//! * `local 127.63.0.0/16 dev lo`: the addresses of servers that the application dials on localhost. Their
//!   client is 127.0.0.1.
//! * The prefixes of both families once more for every interface, with a larger metric, so that a socket that
//!   has chosen an interface (IP_UNICAST_IF, IP_PKTINFO) finds its way to the proxy as well. Behind them
//!   `unreachable`: through an interface that came later, nothing leaves the pod for an address that exists
//!   only inside.
//! * Addresses for IPv6 servers on `lo`, from which the kernel lets the proxy answer. The route that it makes
//!   for each would give the client the server's address; it is removed, and the prefix's own route holds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use redirect_common::addr::Family;
use redirect_common::dns::{ADDRESSES6, LOCAL_SERVERS4, address6};
use serde::{Deserialize, Serialize};

use super::messages::{self, address_on_lo, prefix};
use super::{Address, Error, LocalRoute, Netns};

/// What attach adds for DNS capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsChanges {
    /// Interfaces that a socket may choose, with the address of each family that it then has.
    pub interfaces: Vec<(u32, IpAddr)>,
    /// The families that the pod has are those of its preferred addresses.
    pub sources: Vec<IpAddr>,
}

impl DnsChanges {
    /// The changes for a pod with these addresses and local routes to the sidecar.
    #[must_use]
    pub fn new(addresses: &[Address], routes: &[LocalRoute]) -> DnsChanges {
        let sources: Vec<IpAddr> = routes.iter().map(|route| route.source).collect();
        let usable =
            addresses.iter().filter(|address| address.global && !address.tentative && !address.failed);
        let (preferred, others): (Vec<_>, Vec<_>) =
            usable.partition(|address| sources.contains(&address.net.addr()));
        let mut changes = DnsChanges { interfaces: Vec::new(), sources };
        for address in preferred.into_iter().chain(others) {
            changes.add(address.interface, address.net.addr());
        }
        changes
    }

    /// An interface has one address of each family here, the first that is named.
    fn add(&mut self, interface: u32, ip: IpAddr) {
        let known =
            |(index, other): &(u32, IpAddr)| *index == interface && Family::of(other) == Family::of(&ip);
        if !self.interfaces.iter().any(known) {
            self.interfaces.push((interface, ip));
        }
    }

    /// Takes over what an earlier attach of the same pod added, so that it is taken back, too.
    pub fn take_over(&mut self, other: &DnsChanges) {
        for source in &other.sources {
            if !self.has(Family::of(source)) {
                self.sources.push(*source);
            }
        }
        for (interface, ip) in &other.interfaces {
            self.add(*interface, *ip);
        }
    }

    fn has(&self, family: Family) -> bool {
        self.sources.iter().any(|ip| Family::of(ip) == family)
    }

    /// The routes besides those of the addresses on `lo`.
    fn routes(&self) -> Vec<RouteMessage> {
        let local_servers = RouteAddress::Inet(Ipv4Addr::from(LOCAL_SERVERS4));
        let mut routes = Vec::new();
        let mut prefixes = Vec::new();
        if self.has(Family::V4) {
            routes.push(local_route(local_servers.clone(), 16, RouteAddress::Inet(Ipv4Addr::LOCALHOST)));
            prefixes.extend([(Family::V4, prefix(Family::V4)), (Family::V4, (local_servers, 16))]);
        }
        if self.has(Family::V6) {
            prefixes.push((Family::V6, prefix(Family::V6)));
        }
        for (family, (prefix, length)) in prefixes {
            for (interface, ip) in self.interfaces.iter().filter(|(_, ip)| Family::of(ip) == family) {
                routes.push(through(*interface, local_route(prefix.clone(), length, (*ip).into())));
            }
            routes.push(unreachable(local_route(prefix.clone(), length, prefix)));
        }
        routes
    }
}

/// How long the kernel may take to make the route of an address that was added.
const PATIENCE: Duration = Duration::from_secs(2);
/// Metrics. The routes over `lo` come first: they have 0 for IPv4 and 1024 for IPv6.
const THROUGH_INTERFACE: u32 = 2048;
const UNREACHABLE: u32 = 4096;

impl Netns {
    /// Adds routes and addresses for DNS capture.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open_dns(&mut self, changes: &DnsChanges) -> Result<(), Error> {
        let mut fresh = Vec::new();
        for number in numbers(changes) {
            let request = RouteNetlinkMessage::NewAddress(server_address(number));
            if self.change(request, NLM_F_CREATE | NLM_F_EXCL, "add an address for DNS servers to lo")? {
                fresh.push(number);
            }
        }
        for route in changes.routes() {
            self.add_dns_route(route)?;
        }
        self.settle_dns(changes, &fresh)
    }

    /// Removes the routes that the kernel makes for the addresses on `lo`. For new ones it does so from a
    /// work queue (`addrconf_dad_work()`, Linux 6.18), so this may have to wait a moment.
    fn settle_dns(&mut self, changes: &DnsChanges, fresh: &[u32]) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        for number in numbers(changes) {
            while !self.remove_kernels_route(number)? && fresh.contains(&number) {
                if Instant::now() > deadline {
                    let late = io::Error::from(io::ErrorKind::TimedOut);
                    return Err(self.failed("wait for the route of an address on lo", late));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        if changes.has(Family::V6) {
            let localhost = RouteAddress::Inet6(Ipv6Addr::LOCALHOST);
            self.add_dns_route(local_route(RouteAddress::Inet6(server(0)), 128, localhost))?;
        }
        Ok(())
    }

    /// Takes everything back; fine when it is not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn close_dns(&mut self, changes: &DnsChanges) -> Result<(), Error> {
        for route in changes.routes() {
            self.change(RouteNetlinkMessage::DelRoute(route), 0, "remove a route for DNS capture")?;
        }
        for number in numbers(changes) {
            self.remove_kernels_route(number)?;
            let request = RouteNetlinkMessage::DelAddress(server_address(number));
            self.change(request, 0, "remove an address for DNS servers from lo")?;
        }
        Ok(())
    }

    fn add_dns_route(&mut self, route: RouteMessage) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewRoute(route);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, "add a route for DNS capture").map(drop)
    }

    /// The route to an address on `lo`, whoever made it; `false` when there is none.
    fn remove_kernels_route(&mut self, number: u32) -> Result<bool, Error> {
        let ip = RouteAddress::Inet6(server(number));
        let mut route = local_route(ip.clone(), 128, ip);
        route.header.protocol = RouteProtocol::Unspec;
        route.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::PrefSource(_)));
        self.change(RouteNetlinkMessage::DelRoute(route), 0, "remove the route of an address on lo")
    }
}

/// The numbers of the addresses on `lo`.
fn numbers(changes: &DnsChanges) -> std::ops::Range<u32> {
    0..if changes.has(Family::V6) { ADDRESSES6 } else { 0 }
}

fn server(number: u32) -> Ipv6Addr {
    Ipv6Addr::from(address6(number).octets())
}

/// Marked as deprecated, so that no connection of others has it as its source.
fn server_address(number: u32) -> AddressMessage {
    let mut message = address_on_lo(server(number));
    let mut forever = CacheInfo::default();
    forever.ifa_valid = u32::MAX;
    message.attributes.push(AddressAttribute::CacheInfo(forever));
    message
}

/// The same for sockets that have chosen this interface.
fn through(interface: u32, mut route: RouteMessage) -> RouteMessage {
    for attribute in &mut route.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            *index = interface;
        }
    }
    route.attributes.push(RouteAttribute::Priority(THROUGH_INTERFACE));
    route
}

fn local_route(destination: RouteAddress, length: u8, source: RouteAddress) -> RouteMessage {
    messages::local_route(destination, length, &source, None)
}

/// What all others get.
fn unreachable(mut route: RouteMessage) -> RouteMessage {
    route.header.kind = RouteType::Unreachable;
    route.header.scope = RouteScope::Universe;
    route.attributes.retain(|attribute| matches!(attribute, RouteAttribute::Destination(_)));
    route.attributes.push(RouteAttribute::Priority(UNREACHABLE));
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: u32, net: &str, global: bool) -> Address {
        Address { interface, net: net.parse().unwrap(), global, tentative: false, failed: false }
    }

    fn routes(sources: &[&str]) -> Vec<LocalRoute> {
        let route = |ip: &&str| LocalRoute { source: ip.parse().unwrap(), tentative_on: None };
        sources.iter().map(route).collect()
    }

    #[test]
    fn an_interface_has_one_address_of_each_family_the_preferred_one_first() {
        let addresses = [
            address(1, "127.0.0.1/8", false),
            address(2, "10.77.0.9/16", true),
            address(2, "10.77.0.2/16", true),
            address(2, "fd77::2/64", true),
            address(3, "10.88.0.2/16", true),
        ];
        let changes = DnsChanges::new(&addresses, &routes(&["10.77.0.2", "fd77::2"]));
        let expected = [(2, "10.77.0.2"), (2, "fd77::2"), (3, "10.88.0.2")];
        assert_eq!(changes.interfaces, expected.map(|(index, ip)| (index, ip.parse().unwrap())));
        // Two prefixes of IPv4 and one of IPv6, each by its interfaces and then unreachable; and localhost's
        // own.
        assert_eq!(changes.routes().len(), 1 + 2 * (2 + 1) + (1 + 1));
    }

    #[test]
    fn without_ipv6_nothing_of_it_is_added() {
        let changes = DnsChanges::new(&[address(2, "10.0.0.2/16", true)], &routes(&["10.0.0.2"]));
        assert!(numbers(&changes).is_empty());
        assert_eq!(changes.routes().len(), 1 + 2 * 2);
    }
}
