//! Policies and packets, drawn from small pools so that they meet each other, with some from everywhere.
//!
//! The pod has `eth0` and `eth1` and one address on each per family.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;
use redirect_common::decide::InboundMode;
use redirect_common::{Caller, Endpoint, Facts, Family, Flow, InboundFacts, Ip, Protocol};

/// The pod's own addresses, on `eth0` and `eth1`.
const OWN: [&str; 4] = ["10.0.0.2", "fd00::2", "10.9.0.2", "fd09::2"];
/// What lies behind `eth1`.
const BEHIND_ETH1: [(&str, u8); 2] = [("10.9.0.0", 16), ("fd09::", 64)];
/// Where packets go.
const DESTINATIONS: [&str; 20] = [
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.6",
    "127.0.0.53",
    "127.255.255.254",
    "::1",
    "::6",
    "10.0.0.2",
    "10.9.0.2",
    "fd00::2",
    "fd09::2",
    "10.0.0.3",
    "fd00::3",
    "10.9.1.7",
    "fd09::7",
    "192.0.2.10",
    "169.254.169.254",
    "2001:db8::10",
    "10.10.0.1",
    "::2",
];
const PORTS: [u16; 14] =
    [80, 8080, 53, 15000, 15001, 15006, 15008, 15020, 15021, 15053, 15090, 443, 0, 65535];
const IDS: [u32; 5] = [1337, 1000, 0, 2000, 4_000_000_000];

/// An address and a prefix length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    address: IpAddr,
    length: u8,
}

impl Range {
    /// The range of one address.
    pub(crate) fn host(address: IpAddr) -> Range {
        Range { address, length: if address.is_ipv6() { 128 } else { 32 } }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(&self.address)
    }

    /// Compares the leading bits, one by one.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let (own, other) = (octets(self.address), octets(ip));
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        own.len() == other.len() && (0..usize::from(self.length)).all(|at| bit(&own, at) == bit(&other, at))
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Include {
    All,
    Ranges(Vec<Range>),
}

#[derive(Clone, Debug)]
pub(crate) enum Groups {
    AllBut(BTreeSet<u32>),
    Only(BTreeSet<u32>),
}

#[derive(Clone, Debug)]
pub(crate) enum InboundPorts {
    All,
    List(BTreeSet<u16>),
}

/// A pod's policy, as its annotations say it.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) include: Include,
    pub(crate) exclude: Vec<Range>,
    pub(crate) include_ports: BTreeSet<u16>,
    pub(crate) exclude_ports: BTreeSet<u16>,
    pub(crate) inbound: InboundPorts,
    pub(crate) exclude_inbound: BTreeSet<u16>,
    pub(crate) groups: Groups,
    pub(crate) dns: bool,
    pub(crate) dns_servers: Option<Vec<IpAddr>>,
    pub(crate) exclude_lo: bool,
    pub(crate) exclude_eth1: bool,
    pub(crate) tproxy: bool,
    pub(crate) proxy_uid: u32,
    pub(crate) proxy_gid: u32,
}

impl Policy {
    pub(crate) fn excluded_interfaces(&self) -> impl Iterator<Item = &'static str> {
        let lo = self.exclude_lo.then_some("lo");
        lo.into_iter().chain(self.exclude_eth1.then_some("eth1"))
    }

    /// Whether a range of the include list is written with a loopback address.
    pub(crate) fn loopback_included(&self) -> bool {
        match &self.include {
            Include::All => false,
            Include::Ranges(ranges) => ranges.iter().any(|range| range.address.is_loopback()),
        }
    }
}

/// The questions of `decide()`, answered from the policy and the pod's interfaces.
impl Facts for Policy {
    fn port_excluded(&self, port: u32) -> bool {
        self.exclude_ports.iter().any(|one| u32::from(*one) == port)
    }
    fn port_included(&self, port: u32) -> bool {
        self.include_ports.iter().any(|one| u32::from(*one) == port)
    }
    fn range_excluded(&self, ip: &Ip) -> bool {
        self.exclude.iter().any(|range| range.contains((*ip).into()))
    }
    fn range_included(&self, ip: &Ip) -> bool {
        match &self.include {
            Include::All => true,
            Include::Ranges(ranges) => ranges.iter().any(|range| range.contains((*ip).into())),
        }
    }
    fn own_address(&self, ip: &Ip) -> bool {
        OWN.map(ip_of).contains(&(*ip).into())
    }
    fn interface_excluded(&self, ip: &Ip) -> bool {
        self.exclude_eth1 && behind_eth1((*ip).into())
    }
    fn lo_excluded(&self) -> bool {
        self.exclude_lo
    }
    fn loopback_included(&self) -> bool {
        Policy::loopback_included(self)
    }
    fn group_excluded(&self, gid: u32) -> bool {
        match &self.groups {
            Groups::AllBut(groups) => groups.contains(&gid),
            Groups::Only(groups) => !groups.contains(&gid),
        }
    }
    fn dns_captured(&self) -> bool {
        self.dns
    }
    fn dns_server(&self, ip: &Ip) -> bool {
        self.dns_servers.as_ref().is_none_or(|servers| servers.contains(&(*ip).into()))
    }
    fn tproxy_captures(&self, port: u32) -> bool {
        let listed = |ports: &BTreeSet<u16>| ports.iter().any(|one| u32::from(*one) == port);
        self.tproxy
            && match &self.inbound {
                InboundPorts::All => !listed(&self.exclude_inbound),
                InboundPorts::List(ports) => listed(ports),
            }
    }
    fn proxy_uid(&self) -> u32 {
        self.proxy_uid
    }
    fn proxy_gid(&self) -> u32 {
        self.proxy_gid
    }
}

/// The first packet of a connection, with what the kernel knows about its socket.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) tcp: bool,
    pub(crate) dst: IpAddr,
    pub(crate) port: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    bound: Option<IpAddr>,
    arrived_on: Option<&'static str>,
}

impl Packet {
    /// The interface that the packet arrived on or, by the pod's routes, leaves through.
    pub(crate) fn interface(&self) -> &'static str {
        let to_itself = match self.dst {
            IpAddr::V4(v4) => v4.octets()[0] == 127,
            v6 => v6 == ip_of("::1") || v6 == ip_of("::6"),
        };
        match self.arrived_on {
            Some(name) => name,
            None if to_itself || OWN.map(ip_of).contains(&self.dst) => "lo",
            None if behind_eth1(self.dst) => "eth1",
            None => "eth0",
        }
    }

    /// Its source address: what the socket is bound to, else what the kernel picks. For `::6`, an address of
    /// `lo`, that is `::6` itself; for 127.0.0.6, which is none, it is 127.0.0.1.
    pub(crate) fn source(&self) -> IpAddr {
        let picked = match self.dst {
            IpAddr::V6(_) if ["::1", "::6"].map(ip_of).contains(&self.dst) => self.dst,
            IpAddr::V6(_) => ip_of(OWN[1]),
            IpAddr::V4(v4) if v4.is_loopback() => ip_of("127.0.0.1"),
            IpAddr::V4(_) => ip_of(OWN[0]),
        };
        self.bound.unwrap_or(picked)
    }

    /// The same connection as the connect hook sees it.
    pub(crate) fn flow(&self) -> Flow {
        let protocol = if self.tcp { Protocol::Tcp } else { Protocol::Udp };
        let dst = Endpoint { ip: self.dst.into(), port: self.port.into() };
        let bound = self.bound.map_or(Ip::NONE, Ip::from);
        Flow::new(protocol, dst, bound, Caller { uid: self.uid, gid: self.gid })
    }
}

/// A TCP connection from outside.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) port: u16,
    interface: &'static str,
}

impl Arrival {
    pub(crate) fn packet(&self) -> Packet {
        let (dst, arrived_on) = (ip_of(OWN[0]), Some(self.interface));
        Packet { tcp: true, dst, port: self.port, uid: 0, gid: 0, bound: None, arrived_on }
    }

    pub(crate) fn facts<'a>(&'a self, policy: &'a Policy) -> ArrivalFacts<'a> {
        ArrivalFacts { arrival: self, policy }
    }
}

/// The questions of `decide_inbound()`.
pub(crate) struct ArrivalFacts<'a> {
    arrival: &'a Arrival,
    policy: &'a Policy,
}

impl InboundFacts for ArrivalFacts<'_> {
    fn arrived_on_excluded_interface(&self) -> bool {
        self.policy.excluded_interfaces().any(|name| name == self.arrival.interface)
    }
    fn mode(&self) -> InboundMode {
        match &self.policy.inbound {
            InboundPorts::All => InboundMode::All,
            InboundPorts::List(ports) if ports.is_empty() => InboundMode::Off,
            InboundPorts::List(_) => InboundMode::List,
        }
    }
    fn port_excluded(&self, port: u32) -> bool {
        self.policy.exclude_inbound.iter().any(|one| u32::from(*one) == port)
    }
    fn port_listed(&self, port: u32) -> bool {
        matches!(&self.policy.inbound, InboundPorts::List(ports) if ports.iter().any(|one| u32::from(*one) == port))
    }
    fn tproxy(&self) -> bool {
        self.policy.tproxy
    }
}

fn ip_of(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn behind_eth1(ip: IpAddr) -> bool {
    BEHIND_ETH1.iter().any(|(net, length)| Range { address: ip_of(net), length: *length }.contains(ip))
}

fn destination() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        18 => select(&DESTINATIONS[..]).prop_map(ip_of),
        1 => any::<Ipv4Addr>().prop_map(IpAddr::V4),
        1 => any::<Ipv6Addr>().prop_map(|ip| IpAddr::V6(ip).to_canonical()),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![12 => select(&PORTS[..]), 1 => any::<u16>()]
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![12 => select(&IDS[..]), 1 => any::<u32>()]
}

fn range() -> impl Strategy<Value = Range> {
    (destination(), any::<prop::sample::Index>()).prop_map(|(address, index)| {
        let longest = if address.is_ipv6() { 128 } else { 32 };
        // Often the whole address or a long prefix, so that a range separates neighbours.
        let length = [longest, longest - 1, longest - 8, longest / 2, 8, 1, 0][index.index(7)] as u8;
        Range { address, length }
    })
}

fn ports(most: usize) -> impl Strategy<Value = BTreeSet<u16>> {
    prop::collection::btree_set(port(), 0..most)
}

fn groups() -> impl Strategy<Value = Groups> {
    let some = || prop::collection::btree_set(id(), 0..3);
    prop_oneof![
        3 => Just(Groups::AllBut(BTreeSet::new())),
        1 => some().prop_map(Groups::AllBut),
        1 => some().prop_map(Groups::Only),
    ]
}

/// Any policy.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let include = prop_oneof![
        1 => Just(Include::All),
        1 => prop::collection::vec(range(), 0..4).prop_map(Include::Ranges),
    ];
    let inbound = prop_oneof![1 => Just(InboundPorts::All), 1 => ports(4).prop_map(InboundPorts::List)];
    let outbound = (include, prop::collection::vec(range(), 0..3), ports(3), ports(3));
    let switches = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.3), any::<bool>());
    let proxy = prop_oneof![4 => Just((1337, 1337)), 1 => (id(), id())];
    (outbound, (inbound, ports(4)), groups(), switches, proxy).prop_map(
        |(
            (include, exclude, include_ports, exclude_ports),
            (inbound, exclude_inbound),
            groups,
            switches,
            proxy,
        )| {
            let ((dns, exclude_lo, exclude_eth1, tproxy), (proxy_uid, proxy_gid)) = (switches, proxy);
            Policy {
                include,
                exclude,
                include_ports,
                exclude_ports,
                inbound,
                exclude_inbound,
                groups,
                dns,
                dns_servers: None,
                exclude_lo,
                exclude_eth1,
                tproxy,
                proxy_uid,
                proxy_gid,
            }
        },
    )
}

/// Any outbound packet.
pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    let who = prop_oneof![
        2 => Just((1337, 1337)),
        2 => Just((1337, 1000)),
        2 => Just((1000, 1337)),
        3 => Just((1000, 1000)),
        1 => (id(), id()),
    ];
    let bound = prop::option::weighted(0.4, any::<prop::sample::Index>());
    // The kernel replaces the unspecified address before any rule sees it; `flow.rs` has the tests of that.
    let dst = destination().prop_filter("replaced by the kernel", |ip| !ip.is_unspecified());
    (prop::bool::weighted(0.8), dst, port(), who, bound).prop_map(|(tcp, dst, port, (uid, gid), bound)| {
        let sources =
            if dst.is_ipv6() { ["::6", "::1", "fd00::2"] } else { ["127.0.0.6", "127.0.0.1", "10.0.0.2"] };
        let bound = bound.map(|index| ip_of(sources[index.index(3)]));
        Packet { tcp, dst, port, uid, gid, bound, arrived_on: None }
    })
}

/// Any connection from outside.
pub(crate) fn arrival() -> impl Strategy<Value = Arrival> {
    (port(), select(&["eth0", "eth1"][..])).prop_map(|(port, interface)| Arrival { port, interface })
}
