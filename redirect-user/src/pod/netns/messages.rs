//! What is asked of the kernel's routing tables, and what its answers say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use redirect_common::addr::Family;
use redirect_common::{PREFIX4, PREFIX4_BITS, PREFIX6, PREFIX6_BITS};

use super::objects::{Address, Interface, LocalRoute};
use crate::pod::routes::{PolicyRule, Route, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::printable::printable;

/// The index of `lo` in every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// `::6/128` on `lo`.
pub(super) fn passthrough6() -> AddressMessage {
    address_on_lo(PASSTHROUGH6)
}

/// An address of IPv6 on `lo`.
pub(super) fn address_on_lo(ip: Ipv6Addr) -> AddressMessage {
    let address = IpAddr::V6(ip);
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = LOOPBACK;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// `::6`
pub(super) const PASSTHROUGH6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The route to the private prefix and, for IPv4, one to the pod's own address: the kernel caches the route
/// of the sidecar's answers only if it leads to `lo` by name (`do_cache` in `__mkroute_output()`), which
/// saves 0.5 us per connection.
pub(super) fn local_routes(route: &LocalRoute) -> Vec<RouteMessage> {
    let family = Family::of(&route.source);
    let (prefix, length) = prefix(family);
    let own = RouteAddress::from(route.source);
    match family {
        Family::V4 => {
            vec![local_route(prefix, length, &own, None), local_route(own.clone(), 32, &own, None)]
        }
        Family::V6 => vec![local_route(prefix, length, &own, route.tentative_on)],
    }
}

/// The pod's private prefix of a family, and its length.
pub(super) fn prefix(family: Family) -> (RouteAddress, u8) {
    if family == Family::V4 {
        return (RouteAddress::Inet(Ipv4Addr::from(PREFIX4)), PREFIX4_BITS);
    }
    let bits = u128::from(PREFIX6[0]) << 96 | u128::from(PREFIX6[1]) << 64;
    (RouteAddress::Inet6(Ipv6Addr::from(bits)), PREFIX6_BITS)
}

/// `local <destination>/<length> dev lo src <source>`, or `local <destination>/<length> dev <interface>`
/// where the kernel does not accept the source yet.
pub(super) fn local_route(
    destination: RouteAddress,
    length: u8,
    source: &RouteAddress,
    interface: Option<u32>,
) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match source {
        RouteAddress::Inet6(_) => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    };
    message.header.destination_prefix_length = length;
    message.header.table = TABLE_LOCAL as u8;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Destination(destination)];
    message.attributes.extend(match interface {
        Some(index) => vec![RouteAttribute::Oif(index)],
        None => vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::PrefSource(source.clone())],
    });
    message
}

/// Whether an answer is this route of ours: same table, destination, kind, interface and preferred source.
pub(super) fn is_route(answer: &RouteNetlinkMessage, wanted: &RouteMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(found) = answer else { return false };
    let (a, b) = (&found.header, &wanted.header);
    (a.address_family, a.destination_prefix_length, a.table, a.kind)
        == (b.address_family, b.destination_prefix_length, b.table, b.kind)
        && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
}

/// An address in an answer.
pub(super) fn address_of(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    // For a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL our own; IPv6 has IFA_ADDRESS only.
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    let header = message.header.flags;
    let failed = flags.contains(AddressFlags::Dadfailed) || header.contains(AddressHeaderFlags::Dadfailed);
    let tentative = flags.contains(AddressFlags::Tentative) || header.contains(AddressHeaderFlags::Tentative);
    let optimistic = flags.contains(AddressFlags::Optimistic);
    Some(Address {
        interface: message.header.index,
        net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        global: message.header.index != LOOPBACK && message.header.scope == AddressScope::Universe,
        tentative: tentative && !failed && !optimistic,
        failed,
    })
}

/// An interface in an answer.
pub(super) fn interface_of(message: &RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(printable(name)),
        _ => None,
    })?;
    Some(Interface { index: message.header.index, name })
}

/// Whether an answer is a bridge.
pub(super) fn is_bridge(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewLink(message) = message else { return false };
    message.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))))
    })
}

/// A route in an answer: of a pod's own table, or one that some policy rule may lead to.
pub(super) fn route_of(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let (mut table, mut metric, mut net) = (u32::from(header.table), 0, None);
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => net = Some(IpAddr::from(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => net = Some(IpAddr::from(*ip)),
            RouteAttribute::Oif(index) if !header.flags.contains(RouteFlags::Dead) => hops.push(*index),
            RouteAttribute::MultiPath(all) => hops.extend(
                all.iter()
                    .filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead))
                    .map(|hop| hop.interface_index),
            ),
            _ => {}
        }
    }
    // The kernel leaves the address of a default route away.
    let any = || match header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    };
    if header.kind != RouteType::Unicast {
        hops.clear();
    }
    Some(Route {
        net: IpNet::new(net.or_else(any)?, header.destination_prefix_length).ok()?,
        table,
        metric,
        hops,
        selective: header.source_prefix_length != 0 || header.tos != 0,
    })
}

/// A policy rule in an answer.
pub(super) fn rule_of(message: &RouteNetlinkMessage) -> Option<PolicyRule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(PolicyRule { priority, table, plain: is_plain(message) })
}

/// A rule without any condition that leads to a table: what every namespace has three of.
fn is_plain(message: &RuleMessage) -> bool {
    let header = &message.header;
    let conditions = message.attributes.iter().any(|attribute| {
        !matches!(
            attribute,
            RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::Other(_)
        )
    });
    header.action == RuleAction::ToTable
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && header.flags.is_empty()
        && !conditions
}

const _: () = assert!(TABLE_MAIN == RouteHeader::RT_TABLE_MAIN as u32 && TABLE_DEFAULT < TABLE_MAIN);
