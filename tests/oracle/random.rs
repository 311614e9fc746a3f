//! Scenarios that were not thought of: drawn from a seed, and shrunk to the smallest policy when one fails.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redirect_user::policy::{InterceptionMode, OwnerGroups, Policy, Ports, Ranges};

use crate::rows::ranges;
use crate::scenario::{Connection, Families, Kind, Late, Listens, Setup, Who, Workers};
use crate::world::{SERVED, SERVED_UDP, UNSERVED};

const RANGES: [&str; 14] = [
    "192.0.2.0/24",
    "203.0.113.128/25",
    "10.99.0.0/16",
    "192.0.2.10/32",
    "198.51.100.0/24",
    "10.77.0.0/16",
    "10.77.0.2/32",
    "127.0.0.0/8",
    "0.0.0.0/0",
    "2001:db8::/64",
    "2001:db8::10/128",
    "fd77::/64",
    "::1/128",
    "::/0",
];
const REMOTE: [&str; 16] = [
    "10.77.0.3",
    "10.99.0.3",
    "fd99::3",
    "203.0.113.10",
    "203.0.113.200",
    "203.0.113.66",
    "2001:db8:f::1",
    "192.0.2.10",
    "192.0.2.20",
    "198.51.100.10",
    "169.254.169.254",
    "10.88.0.3",
    "fd77::3",
    "2001:db8::10",
    "2001:db8:1::10",
    "fd88::3",
];
const LOCAL: [&str; 13] = [
    "127.0.0.1",
    "127.72.3.203",
    "10.99.0.2",
    "fd99::2",
    "127.0.0.2",
    "127.0.0.6",
    "127.0.0.53",
    "10.77.0.2",
    "10.88.0.2",
    "::1",
    "::6",
    "fd77::2",
    "fd88::2",
];
const FROM_PEER: [&str; 6] = ["10.77.0.2", "10.88.0.2", "10.99.0.2", "fd77::2", "fd88::2", "fd99::2"];
/// Servers that a UDP socket may have asked before.
const ASKED_BEFORE: [&str; 6] =
    ["192.0.2.10", "192.0.2.20", "10.77.0.3", "2001:db8::10", "2001:db8::20", "fd77::3"];
/// The late addresses, and what is dialled in their place where there are none.
const LATE: [(&str, &str); 4] =
    [("10.99.0.2", "10.77.0.2"), ("10.99.0.3", "10.77.0.3"), ("fd99::2", "fd77::2"), ("fd99::3", "fd77::3")];
/// Ports below all that the kernel chooses.
const BOUND_PORTS: std::ops::Range<u16> = 2_100..8_000;

/// A stream of scenarios: the same seed gives the same.
pub(crate) struct Scenarios {
    runner: TestRunner,
    /// The next port for a socket that is bound to one; not used again soon, as iptables remembers
    /// connections.
    port: u16,
}

impl Scenarios {
    pub(crate) fn new(seed: u64) -> Scenarios {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Scenarios { runner: TestRunner::new_with_rng(Config::default(), rng), port: BOUND_PORTS.start }
    }

    /// A setup and `count` connections in it.
    pub(crate) fn next(&mut self, count: usize) -> (Setup, Vec<Connection>) {
        let both = (setup(), prop::collection::vec(connection(), count));
        let tree = both.new_tree(&mut self.runner).expect("nothing is rejected for ever");
        let (setup, mut connections) = tree.current();
        for connection in &mut connections {
            fit(connection, &setup);
            if connection.port != 0 {
                connection.port = self.port;
                self.port = if self.port + 1 < BOUND_PORTS.end { self.port + 1 } else { BOUND_PORTS.start };
            }
        }
        (setup, connections)
    }
}

fn some<T: Clone + std::fmt::Debug + 'static>(
    all: &'static [T],
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![1 => Just(Vec::new()), 1 => subsequence(all, 1..=most)]
}

fn some_ranges(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
    some(&RANGES, most).prop_map(|list| ranges(&list))
}

fn some_ports(all: &'static [u16]) -> impl Strategy<Value = BTreeSet<u16>> {
    some(all, 3).prop_map(|ports| ports.into_iter().collect())
}

fn setup() -> impl Strategy<Value = Setup> {
    let sidecar = prop_oneof![
        6 => Just(Listens::Everywhere),
        3 => Just(Listens::OnLocalhost),
        1 => Just(Listens::DualStack),
        1 => Just(Listens::OnlyV4),
        1 => Just(Listens::OnlyV6),
        1 => Just(Listens::Nowhere),
    ];
    let workers =
        prop_oneof![6 => Just(Workers::One), 1 => Just(Workers::Eight), 1 => Just(Workers::Renewed)];
    let families =
        prop_oneof![6 => Just(Families::Both), 1 => Just(Families::OnlyV4), 1 => Just(Families::OnlyV6)];
    let late = prop_oneof![6 => Just(Late::Nothing), 1 => Just(Late::Addresses), 1 => Just(Late::Interface)];
    (policy(), sidecar, workers, families, late).prop_map(|(policy, sidecar, workers, families, late)| {
        Setup { policy, sidecar, workers, families, late }
    })
}

/// Turns what cannot be in such a setup into what can.
fn fit(connection: &mut Connection, setup: &Setup) {
    let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
    for (late, usual) in LATE {
        let there = match setup.late {
            Late::Nothing => false,
            Late::Addresses => late.ends_with('2'),
            Late::Interface => true,
        };
        if !there && connection.to.ip() == parse(late) {
            connection.to.set_ip(parse(usual));
        }
    }
    if connection.who == Who::Peer && !setup.families.have(connection.to.ip()) {
        let other = FROM_PEER.into_iter().map(parse).find(|ip| setup.families.have(*ip));
        connection.to.set_ip(other.expect("the pod has an address"));
        connection.source = None;
    }
    connection.mapped &= connection.to.is_ipv4();
    connection.source =
        connection.source.filter(|source| source.is_loopback() || setup.families.have(*source));
    connection.first = connection.first.filter(|first| first.is_ipv4() == connection.to.is_ipv4());
}

fn policy() -> impl Strategy<Value = Policy> {
    let include = prop_oneof![3 => Just(Ranges::All), 2 => some_ranges(3).prop_map(Ranges::List)];
    let inbound = prop_oneof![
        3 => Just(Ports::All),
        2 => some_ports(&[8080, 15020, 15008, 15001, 53]).prop_map(Ports::List),
    ];
    let groups = prop_oneof![
        4 => Just(OwnerGroups::AllBut([].into())),
        1 => Just(OwnerGroups::AllBut([2000].into())),
        1 => Just(OwnerGroups::Only([1000].into())),
        1 => Just(OwnerGroups::Only([2000, 1337].into())),
    ];
    let interfaces = prop_oneof![
        6 => Just(vec![]),
        2 => Just(vec!["eth1".to_owned()]),
        1 => Just(vec!["eth0".to_owned()]),
        1 => Just(vec!["eth2".to_owned()]),
        1 => Just(vec!["lo".to_owned()]),
    ];
    let outbound_ports = (some_ports(&[9001, 8080, 53, 15020]), some_ports(&[9000, 8080, 53, 15001, 15020]));
    let lists = (include, some_ranges(2), outbound_ports, inbound, some_ports(&[9000, 8080, 15001, 22]));
    let mode = prop_oneof![3 => Just(InterceptionMode::Redirect), 1 => Just(InterceptionMode::Tproxy)];
    (lists, interfaces, groups, any::<bool>(), mode).prop_map(
        |(lists, exclude_interfaces, owner_groups, dns_capture, interception_mode)| {
            let (include, exclude, (include_ports, exclude_ports), include_inbound_ports, exclude_inbound) =
                lists;
            let mut policy = Policy {
                interception_mode,
                include_outbound_ip_ranges: include,
                exclude_outbound_ip_ranges: exclude,
                include_outbound_ports: include_ports,
                exclude_outbound_ports: exclude_ports,
                include_inbound_ports,
                exclude_interfaces,
                owner_groups,
                dns_capture,
                ..Policy::default()
            };
            policy.exclude_inbound_ports.extend(exclude_inbound);
            policy
        },
    )
}

fn connection() -> impl Strategy<Value = Connection> {
    let outbound = prop_oneof![2 => select(&LOCAL[..]), 3 => select(&REMOTE[..])];
    let who = prop_oneof![3 => Just(Who::App), 2 => select(&Who::IN_POD[..])];
    let ends = prop_oneof![4 => (who, outbound), 1 => (Just(Who::Peer), select(&FROM_PEER[..]))];
    let source = prop::option::weighted(0.3, any::<prop::sample::Index>());
    let kind = prop_oneof![
        10 => Just(Kind::Tcp),
        2 => Just(Kind::Mptcp),
        2 => Just(Kind::UdpConnected),
        2 => Just(Kind::UdpUnconnected),
        1 => Just(Kind::UdpDissolved),
    ];
    let before = (prop::bool::weighted(0.15), prop::option::weighted(0.5, select(&ASKED_BEFORE[..])));
    let port = (tcp_port(), prop_oneof![1 => Just(53), 1 => select(&SERVED_UDP[..])]);
    (ends, source, kind, port, prop::bool::weighted(0.2), before).prop_map(
        |((who, ip), source, kind, (tcp, udp), mapped, (bound, first))| {
            let ip: IpAddr = ip.parse().expect("an address");
            let to = SocketAddr::new(ip, if kind.is_tcp() { tcp } else { udp });
            let first = first.filter(|_| !kind.is_tcp()).map(|first| first.parse().expect("an address"));
            let sources = sources(who, ip);
            let source = source.map(|index| *index.get(&sources));
            Connection { who, kind, source, port: u16::from(bound), to, mapped, first }
        },
    )
}

fn tcp_port() -> impl Strategy<Value = u16> {
    prop_oneof![
        7 => select(&SERVED[..]),
        1 => select(&[15001, 15006][..]),
        1 => Just(53),
        1 => Just(UNSERVED),
    ]
}

/// What a socket may be bound to so that an answer can find its way back: a packet from localhost that leaves
/// the pod is lost in both worlds, and waiting for nothing takes long.
fn sources(who: Who, to: IpAddr) -> Vec<IpAddr> {
    let texts: &[&str] = match (who, to.is_ipv6(), LOCAL.map(|ip| ip.parse()).contains(&Ok(to))) {
        (Who::Peer, false, _) => &["10.77.0.3", "192.0.2.10"],
        (Who::Peer, true, _) => &["fd77::3", "2001:db8::10"],
        (_, false, true) => &["127.0.0.1", "127.0.0.6", "10.77.0.2"],
        (_, true, true) => &["::1", "::6", "fd77::2"],
        (_, false, false) => &["10.77.0.2", "10.88.0.2"],
        (_, true, false) => &["fd77::2", "fd88::2"],
    };
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

/// Setups that are one step simpler than this one, the largest steps first. Simpler is what takes fewer words
/// to tell, so that no series of steps goes round in a circle.
pub(crate) fn simpler(setup: &Setup) -> Vec<Setup> {
    let usual = Policy::default();
    let mut candidates = vec![
        Setup { policy: setup.policy.clone(), ..Setup::default() },
        Setup { sidecar: Listens::Everywhere, ..setup.clone() },
        Setup { workers: Workers::One, ..setup.clone() },
        Setup { families: Families::Both, ..setup.clone() },
        Setup { late: Late::Nothing, ..setup.clone() },
    ];
    let mut change = |change: &dyn Fn(&mut Policy)| {
        let mut policy = setup.policy.clone();
        change(&mut policy);
        candidates.push(Setup { policy, ..setup.clone() });
    };
    change(&|policy| policy.include_outbound_ip_ranges = Ranges::All);
    change(&|policy| policy.exclude_outbound_ip_ranges.clear());
    change(&|policy| policy.include_outbound_ports.clear());
    change(&|policy| policy.exclude_outbound_ports.clone_from(&usual.exclude_outbound_ports));
    change(&|policy| policy.exclude_outbound_ports.clear());
    change(&|policy| policy.include_inbound_ports = Ports::All);
    change(&|policy| policy.exclude_inbound_ports.clone_from(&usual.exclude_inbound_ports));
    change(&|policy| policy.exclude_interfaces.clear());
    change(&|policy| policy.owner_groups = OwnerGroups::AllBut([].into()));
    change(&|policy| policy.dns_capture = false);
    change(&|policy| policy.interception_mode = InterceptionMode::Redirect);
    for index in 0..3 {
        change(&|policy| {
            if let Ranges::List(list) = &mut policy.include_outbound_ip_ranges
                && index < list.len()
            {
                list.remove(index);
            }
            if index < policy.exclude_outbound_ip_ranges.len() {
                policy.exclude_outbound_ip_ranges.remove(index);
            }
        });
        for ports in [
            (|policy| &mut policy.include_outbound_ports) as fn(&mut Policy) -> &mut BTreeSet<u16>,
            |policy| &mut policy.exclude_outbound_ports,
        ] {
            change(&|policy| {
                let gone = ports(policy).iter().nth(index).copied();
                gone.map(|port| ports(policy).remove(&port));
            });
        }
    }
    let words = setup.to_string().len();
    candidates.retain(|candidate| candidate.to_string().len() < words);
    candidates
}
