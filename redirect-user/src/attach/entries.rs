//! What an attachment becomes in the maps: the pod's configuration, and its entries in the other tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use redirect_common::addr::Family;
use redirect_common::{Ip, PORTS_PER_BLOCK, PodConfig, PortBlock, flags, list, set};

use crate::attach::record::Attachment;
use crate::pod::routes::PrefixVerdict;
use crate::policy::{Guard, InterceptionMode, OwnerGroups, Policy, Ports, Ranges};

/// What the maps hold for an attachment.
pub(crate) fn of(attachment: &Attachment) -> (PodConfig, Entries) {
    let (mut config, entries) = compile(&attachment.policy, &surroundings(attachment));
    (config.cookie, config.cgroup_id) = (attachment.cookie, attachment.cgroup_id);
    (config, entries)
}

/// What one pod has in the maps besides its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// List and range, and whether what is in the range is in the list: a longer range may take some of it
    /// out again.
    pub(crate) ranges: Vec<(u32, IpNet, bool)>,
    /// Set and number of the block.
    pub(crate) ports: Vec<(u32, u32, PortBlock)>,
    /// Set and value.
    pub(crate) sets: Vec<(u32, u32)>,
    /// The pod's addresses.
    pub(crate) own: Vec<IpAddr>,
}

impl Entries {
    /// Those that differ from `there`, or are missing in it.
    pub(crate) fn besides(&self, there: &Entries) -> Entries {
        let (ranges, sets): (BTreeSet<_>, BTreeSet<_>) =
            (there.ranges.iter().collect(), there.sets.iter().collect());
        Entries {
            ranges: self.ranges.iter().filter(|entry| !ranges.contains(entry)).copied().collect(),
            ports: self.ports.iter().filter(|entry| !there.ports.contains(entry)).copied().collect(),
            sets: self.sets.iter().filter(|entry| !sets.contains(entry)).copied().collect(),
            own: self.own.iter().filter(|ip| !there.own.contains(ip)).copied().collect(),
        }
    }

    /// Those whose keys `wanted` does not have.
    pub(crate) fn without_keys_of(&self, wanted: &Entries) -> Entries {
        // The maps have no host bits.
        let ranges: BTreeSet<_> = wanted.ranges.iter().map(|(list, net, _)| (*list, net.trunc())).collect();
        let sets: BTreeSet<_> = wanted.sets.iter().collect();
        let blocks: BTreeSet<_> = wanted.ports.iter().map(|(set, block, _)| (set, block)).collect();
        let gone = |(list, net, _): &&(u32, IpNet, bool)| !ranges.contains(&(*list, net.trunc()));
        let unused = |(set, block, _): &&(u32, u32, PortBlock)| !blocks.contains(&(set, block));
        Entries {
            ranges: self.ranges.iter().filter(gone).copied().collect(),
            ports: self.ports.iter().filter(unused).copied().collect(),
            sets: self.sets.iter().filter(|entry| !sets.contains(entry)).copied().collect(),
            own: self.own.iter().filter(|ip| !wanted.own.contains(ip)).copied().collect(),
        }
    }
}

/// What attach found in the pod that the policy's map entries depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Surroundings {
    /// The pod's addresses.
    own: Vec<IpAddr>,
    /// Indices of the interfaces that the policy excludes.
    excluded_interfaces: Vec<u32>,
    /// Where connections leave by them.
    interface_routes: Vec<PrefixVerdict>,
    /// `lo` itself is excluded.
    lo_excluded: bool,
    /// The pod's IPv4 address, to which its local route belongs.
    source4: Option<IpAddr>,
    /// The pod's IPv6 address, to which its local route belongs.
    source6: Option<IpAddr>,
    /// The proxy's ids in the initial user namespace.
    proxy_ids: (u32, u32),
    /// The owner groups in the initial user namespace.
    groups: BTreeSet<u32>,
    /// First and last port that the namespace gives to outgoing connections.
    ephemeral: (u16, u16),
}

impl Surroundings {
    /// Whether the programs do not know an address of the pod without a look-up: its two sources are in the
    /// configuration, and about link-local addresses they always ask.
    fn must_be_asked(&self, ip: &IpAddr) -> bool {
        ![self.source4, self.source6].contains(&Some(*ip)) && !Ip::from(*ip).is_link_local()
    }
}

/// The policy as configuration, without the pod's ids, and map entries.
fn compile(policy: &Policy, around: &Surroundings) -> (PodConfig, Entries) {
    let mut entries = Entries { own: around.own.clone(), ..Entries::default() };
    let mut bits = 0;
    let mut add_ranges = |flag: u32, list: u32, ranges: &[IpNet]| {
        entries.ranges.extend(ranges.iter().map(|range| (list, *range, true)));
        if ranges.is_empty() { 0 } else { flag }
    };
    match &policy.include_outbound_ip_ranges {
        Ranges::All => bits |= flags::INCLUDE_ALL,
        Ranges::List(ranges) => {
            bits |= add_ranges(flags::INCLUDED_RANGES, list::INCLUDED, ranges);
            if ranges.iter().any(|range| range.network().is_loopback()) {
                bits |= flags::LOOPBACK_INCLUDED;
            }
        }
    }
    bits |= add_ranges(flags::EXCLUDED_RANGES, list::EXCLUDED, &policy.exclude_outbound_ip_ranges);
    if let Ranges::List(servers) = &policy.dns_servers {
        add_ranges(0, list::DNS_SERVERS, servers);
        bits |= flags::DNS_LISTED;
    }
    let verdicts = around.interface_routes.iter();
    entries.ranges.extend(verdicts.map(|verdict| (list::INTERFACE, verdict.net, verdict.excluded)));
    if !around.interface_routes.is_empty() {
        bits |= flags::EXCLUDED_INTERFACES;
    }
    bits |= ports(policy, &mut entries) | groups_and_interfaces(policy, around, &mut entries);
    let guarded = policy.guard != Guard::Off;
    for (flag, on) in [
        (flags::DNS, policy.dns_capture),
        (flags::LO_EXCLUDED, around.lo_excluded),
        (flags::GUARD, guarded),
        (flags::TPROXY, policy.interception_mode == InterceptionMode::Tproxy),
        (flags::MORE_ADDRESSES, around.own.iter().any(|ip| around.must_be_asked(ip))),
    ] {
        bits |= if on { flag } else { 0 };
    }
    let config = PodConfig {
        cookie: 0,
        cgroup_id: 0,
        flags: bits,
        proxy_uid: around.proxy_ids.0,
        proxy_gid: around.proxy_ids.1,
        outbound_port: policy.proxy.outbound_port.into(),
        inbound_port: policy.proxy.inbound_port.into(),
        dns_port: policy.proxy.dns_port.into(),
        ephemeral_first: around.ephemeral.0.into(),
        ephemeral_last: around.ephemeral.1.into(),
        source4: around.source4.map_or(Ip::NONE, Ip::from),
        source6: around.source6.map_or(Ip::NONE, Ip::from),
    };
    (config, entries)
}

fn ports(policy: &Policy, entries: &mut Entries) -> u32 {
    let mut add = |flag: u32, set: u32, ports: &BTreeSet<u16>| {
        entries.ports.extend(blocks(ports).into_iter().map(|(number, block)| (set, number, block)));
        if ports.is_empty() { 0 } else { flag }
    };
    let mut bits =
        add(flags::OUTBOUND_EXCLUDED_PORTS, set::OUTBOUND_EXCLUDED, &policy.exclude_outbound_ports);
    bits |= add(flags::OUTBOUND_INCLUDED_PORTS, set::OUTBOUND_INCLUDED, &policy.include_outbound_ports);
    bits | match &policy.include_inbound_ports {
        Ports::All => {
            add(0, set::INBOUND_EXCLUDED, &policy.exclude_inbound_ports);
            flags::INBOUND_ALL
        }
        Ports::List(listed) => add(flags::INBOUND_LIST, set::INBOUND_INCLUDED, listed),
    }
}

/// The blocks of a set of ports, by their numbers.
fn blocks(ports: &BTreeSet<u16>) -> BTreeMap<u32, PortBlock> {
    let mut blocks = BTreeMap::new();
    for port in ports.iter().copied().map(u32::from) {
        blocks.entry(port / PORTS_PER_BLOCK).or_insert(PortBlock::EMPTY).insert(port);
    }
    blocks
}

fn groups_and_interfaces(policy: &Policy, around: &Surroundings, entries: &mut Entries) -> u32 {
    entries.sets.extend(around.groups.iter().map(|group| (set::GROUP, *group)));
    entries.sets.extend(around.excluded_interfaces.iter().map(|index| (set::INTERFACE, *index)));
    let interfaces = if around.excluded_interfaces.is_empty() { 0 } else { flags::INBOUND_INTERFACES };
    interfaces
        | match &policy.owner_groups {
            OwnerGroups::AllBut(_) if around.groups.is_empty() => 0,
            OwnerGroups::AllBut(_) => flags::GROUPS_EXCLUDED,
            OwnerGroups::Only(_) => flags::GROUPS_INCLUDED,
        }
}

/// The part of the plan that the map entries depend on.
fn surroundings(attachment: &Attachment) -> Surroundings {
    let sources = || attachment.changes.local_routes.iter().map(|route| route.source);
    let routed = |family| sources().find(|ip| Family::of(ip) == family);
    Surroundings {
        own: attachment.addresses.clone(),
        excluded_interfaces: attachment.excluded_interfaces.clone(),
        interface_routes: attachment.interface_routes.clone(),
        lo_excluded: attachment.lo_excluded,
        source4: routed(Family::V4),
        source6: routed(Family::V6),
        proxy_ids: (attachment.host_uid, attachment.host_gid),
        groups: attachment.host_groups.clone(),
        ephemeral: attachment.ephemeral_ports,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_only_what_is_unused_removed() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut block = PortBlock::EMPTY;
        block.insert(80);
        let there = Entries {
            ranges: vec![
                (0, net("10.0.0.0/8"), true),
                (2, net("0.0.0.0/0"), true),
                (2, net("fd00::/8"), true),
            ],
            ports: vec![(0, 0, block), (1, 7, block)],
            sets: vec![(4, 5), (5, 2)],
            own: vec!["10.0.0.2".parse().unwrap()],
        };
        let wanted = Entries {
            ranges: vec![(0, net("10.0.0.0/8"), true), (2, net("0.0.0.0/0"), false)],
            ports: vec![(0, 0, PortBlock::EMPTY)],
            sets: vec![(4, 5), (5, 3)],
            own: vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()],
        };
        let written = Entries {
            ranges: vec![(2, net("0.0.0.0/0"), false)],
            ports: vec![(0, 0, PortBlock::EMPTY)],
            sets: vec![(5, 3)],
            own: vec!["10.0.0.3".parse().unwrap()],
        };
        assert_eq!(wanted.besides(&there), written);
        let removed = Entries {
            ranges: vec![(2, net("fd00::/8"), true)],
            ports: vec![(1, 7, block)],
            sets: vec![(5, 2)],
            own: Vec::new(),
        };
        assert_eq!(there.without_keys_of(&wanted), removed);
        assert_eq!(wanted.besides(&wanted), Entries::default());
        assert_eq!(wanted.without_keys_of(&wanted), Entries::default());
    }
}
