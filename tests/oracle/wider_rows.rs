//! Fixed scenarios about what pods do besides the two truth tables: sidecars that listen in other ways,
//! several workers, pods of one family, addresses that come later, MPTCP, several DNS servers on one socket,
//! bound ports, places that cannot be reached, and servers of the pod's own inside our private prefix.

use redirect_common::{Endpoint, Family, slot_address, slot_of};

use crate::rows::{INBOUND, PLACES, Row, everybody, policy, tcp, udp};
use crate::scenario::{Connection, Families, Kind, Late, Listens, Setup, Who, Workers};

const REMOTE: [&str; 3] = ["192.0.2.10:80", "198.51.100.10:80", "[2001:db8::10]:80"];
const LATE: [&str; 2] = ["10.99.0.2:8080", "[fd99::2]:8080"];
const DNS: [&str; 2] = ["192.0.2.10:53", "[2001:db8::10]:53"];

fn row(name: &str, setup: Setup, connections: Vec<Connection>) -> Row {
    Row { name: format!("wider: {name}"), setup, connections, server: None }
}

/// Those in which the worlds agree.
pub(crate) fn agreed() -> Vec<Row> {
    [listeners(), workers(Workers::Eight), later(), sockets()].concat()
}

/// Those in which they differed until slots, listeners and MPTCP were mended, and what differs on purpose.
pub(crate) fn open() -> Vec<Row> {
    [workers(Workers::Renewed), addresses(), others()].concat()
}

fn listeners() -> Vec<Row> {
    let mut rows = Vec::new();
    for sidecar in [Listens::DualStack, Listens::OnlyV4, Listens::OnlyV6] {
        let setup = Setup { sidecar, ..Setup::default() };
        rows.push(row("another listener", setup.clone(), everybody(PLACES)));
        rows.push(row("another listener, inbound", setup, tcp(Who::Peer, INBOUND)));
    }
    rows
}

fn workers(workers: Workers) -> Vec<Row> {
    let row = |sidecar| {
        let setup = Setup { workers, sidecar, ..Setup::default() };
        // Often enough that the kernel chooses more than one of them.
        let often = (0..8).flat_map(|_| [tcp(Who::App, &REMOTE), tcp(Who::Peer, &INBOUND[..1])].concat());
        row("workers", setup, often.collect())
    };
    [Listens::Everywhere, Listens::OnLocalhost, Listens::OnlyV6].map(row).into()
}

fn addresses() -> Vec<Row> {
    let mut rows = Vec::new();
    for families in [Families::OnlyV4, Families::OnlyV6] {
        let setup = Setup { families, ..Setup::default() };
        rows.push(row("one family", setup.clone(), everybody(PLACES)));
        let own = if families == Families::OnlyV4 { &INBOUND[..1] } else { &INBOUND[4..5] };
        rows.push(row("one family, inbound", setup, tcp(Who::Peer, own)));
    }
    let nowhere = everybody(&["203.0.113.66:80", "[2001:db8:f::1]:80"]);
    rows.push(row("unreachable", Setup::default(), nowhere.clone()));
    rows.push(row(
        "unreachable, no sidecar",
        Setup { sidecar: Listens::Nowhere, ..Setup::default() },
        nowhere,
    ));
    let dns = policy(|policy| policy.dns_capture = true);
    let servers = ["203.0.113.66:53", "[2001:db8:f::1]:53"];
    let asked = [udp(Who::App, &servers), tcp(Who::App, &servers)].concat();
    rows.push(row("unreachable, DNS", Setup { policy: dns.clone(), ..Setup::default() }, asked));
    for families in [Families::OnlyV4, Families::OnlyV6] {
        let local = udp(Who::App, &["127.0.0.53:53", "[::1]:53"]);
        let asked = [udp(Who::App, &DNS), tcp(Who::App, &DNS), local].concat();
        rows.push(row("one family, DNS", Setup { families, policy: dns.clone(), ..Setup::default() }, asked));
    }
    rows
}

fn later() -> Vec<Row> {
    let mut rows = Vec::new();
    for late in [Late::Addresses, Late::Interface] {
        for interfaces in [vec![], vec!["eth2".to_owned()]] {
            let policy = policy(|policy| policy.exclude_interfaces = interfaces);
            let setup = Setup { late, policy, ..Setup::default() };
            let inbound = LATE.iter().map(|to| Connection::tcp(Who::Peer, to));
            rows.push(row("late", setup, everybody(&LATE).into_iter().chain(inbound).collect()));
        }
    }
    let eth1 = policy(|policy| policy.exclude_interfaces = vec!["eth1".to_owned()]);
    let wide = tcp(Who::App, &["203.0.113.10:80", "203.0.113.200:80"]);
    rows.push(row("a narrower route", Setup { policy: eth1, ..Setup::default() }, wide));
    rows
}

fn sockets() -> Vec<Row> {
    let dns = Setup { policy: policy(|policy| policy.dns_capture = true), ..Setup::default() };
    let kinds = [Kind::UdpConnected, Kind::UdpUnconnected, Kind::UdpDissolved];
    let [four, six] = DNS.map(|to| kinds.map(|kind| Connection::tcp(Who::App, to).of(kind)));
    let several = four.map(|one| one.after("192.0.2.20")).into_iter();
    let several = several.chain(six.map(|one| one.after("2001:db8::20"))).collect();
    let bound = udp(Who::App, &DNS).into_iter().zip(2000..).map(|(one, port)| one.on_port(port));
    let bound_tcp =
        |first| tcp(Who::App, &REMOTE).into_iter().zip(first..).map(|(one, port)| one.on_port(port));
    let localhost = Setup { sidecar: Listens::OnLocalhost, ..Setup::default() };
    vec![
        row("a bound port", Setup::default(), bound_tcp(2010).collect()),
        row("a bound port, sidecar on localhost", localhost, bound_tcp(2020).collect()),
        row("several DNS servers", dns.clone(), several),
        row("a bound port, DNS", dns, bound.collect()),
    ]
}

fn others() -> Vec<Row> {
    let mptcp =
        |who, to: &[&str]| tcp(who, to).into_iter().map(|one| one.of(Kind::Mptcp)).collect::<Vec<_>>();
    let multipath = [mptcp(Who::App, &REMOTE), mptcp(Who::Proxy, PLACES), mptcp(Who::Peer, INBOUND)].concat();
    vec![
        row("MPTCP", Setup::default(), multipath),
        row("in our prefix", Setup::default(), in_our_prefix()),
        row("effective ids", Setup::default(), tcp(Who::EffectiveProxy, &REMOTE)),
    ]
}

/// A server of the pod's own at the address that stands for a destination, and a destination in our IPv6
/// prefix that is none of ours.
fn in_our_prefix() -> Vec<Connection> {
    let destination = Connection::tcp(Who::App, "192.0.2.10:80");
    let slot = slot_of(&Endpoint::from(destination.to), 0);
    let taken = std::net::IpAddr::from(slot_address(slot, Family::V4));
    let own = format!("{taken}:8080");
    vec![
        Connection::tcp(Who::App, "127.72.3.203:8080"),
        destination,
        Connection::tcp(Who::App, &own),
        Connection::tcp(Who::App, "[fd72:6564:6972::2cb]:15001"),
        Connection::tcp(Who::Proxy, "[::6]:15001"),
        Connection::tcp(Who::App, "127.72.3.203:15001"),
    ]
}
