//! The fixed scenarios: what is common to [`crate::outbound_rows`] and [`crate::inbound_rows`], one row or
//! more for each of the documentation's two truth tables, and [`beyond`] for what the tables leave open.

use redirect_user::policy::{Policy, Ports, Ranges};

use crate::outcome::Server;
use crate::scenario::{Connection, Kind, Listens, Setup, Who};

/// Connections that must come to the same end in both worlds.
#[derive(Clone)]
pub(crate) struct Row {
    /// Table and row.
    pub(crate) name: String,
    pub(crate) setup: Setup,
    pub(crate) connections: Vec<Connection>,
    /// Who gets them, in both worlds; where nothing is said, the worlds need only agree.
    pub(crate) server: Option<Server>,
}

pub(crate) fn row(name: &str, policy: &Policy, connections: Vec<Connection>, server: Server) -> Row {
    let setup = Setup { policy: policy.clone(), ..Setup::default() };
    Row { name: name.to_owned(), setup, connections, server: Some(server) }
}

/// TCP connections of somebody to several destinations.
pub(crate) fn tcp(who: Who, to: &[&str]) -> Vec<Connection> {
    to.iter().map(|to| Connection::tcp(who, to)).collect()
}

/// Datagrams, on connected and on unconnected sockets.
pub(crate) fn udp(who: Who, to: &[&str]) -> Vec<Connection> {
    let kinds = [Kind::UdpConnected, Kind::UdpUnconnected];
    to.iter().flat_map(|to| kinds.map(|kind| Connection::tcp(who, to).of(kind))).collect()
}

/// A policy that differs from the default.
pub(crate) fn policy(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy::default();
    change(&mut policy);
    policy
}

pub(crate) fn ranges(list: &[&str]) -> Vec<ipnet::IpNet> {
    list.iter().map(|range| range.parse().expect("a range")).collect()
}

pub(crate) fn include(list: &[&str]) -> Ranges {
    Ranges::List(ranges(list))
}

pub(crate) fn listed(ports: &[u16]) -> Ports {
    Ports::List(ports.iter().copied().collect())
}

/// Everything whose end the tables do not tell: bound sockets, sidecars that listen on localhost or not at
/// all, dialling the sidecar's ports oneself, ports without a server.
pub(crate) fn beyond() -> Vec<Row> {
    let dns = policy(|policy| policy.dns_capture = true);
    let lo = policy(|policy| policy.exclude_interfaces = vec!["lo".to_owned()]);
    let mut rows = Vec::new();
    let mut add = |name: &str, policy: &Policy, sidecar: Listens, connections: Vec<Connection>| {
        let setup = Setup { policy: policy.clone(), sidecar, ..Setup::default() };
        rows.push(Row { name: format!("beyond: {name}"), setup, connections, server: None });
    };
    let default = Policy::default();
    for (name, sidecar) in [
        ("sidecar everywhere", Listens::Everywhere),
        ("sidecar on localhost", Listens::OnLocalhost),
        ("no sidecar", Listens::Nowhere),
    ] {
        add(name, &default, sidecar, bound_sockets());
        add(name, &default, sidecar, everybody(SIDECAR_PORTS));
        add(name, &default, sidecar, everybody(PLACES));
        add(name, &default, sidecar, tcp(Who::Peer, INBOUND));
        add(name, &dns, sidecar, everybody(DNS_SERVERS));
        add(name, &dns, sidecar, Who::IN_POD.iter().flat_map(|who| udp(*who, DNS_SERVERS)).collect());
    }
    add("lo is excluded", &lo, Listens::Everywhere, everybody(PLACES));
    let mapped = |to: &[&str]| everybody(to).into_iter().map(Connection::mapped).collect::<Vec<_>>();
    add(
        "IPv4-mapped",
        &default,
        Listens::Everywhere,
        mapped(&["192.0.2.10:80", "127.0.0.1:8080", "10.77.0.2:8080"]),
    );
    add("IPv4-mapped", &dns, Listens::Everywhere, mapped(&["192.0.2.10:53", "127.0.0.53:53"]));
    let excluded = policy(|policy| policy.exclude_outbound_ports = [4444].into());
    let same_port =
        ["192.0.2.10:80", "198.51.100.10:80"].map(|to| Connection::tcp(Who::App, to).on_port(7001));
    add("the same port twice", &default, Listens::Everywhere, same_port.into());
    let own_port =
        ["192.0.2.10:80", "[2001:db8::10]:80"].map(|to| Connection::tcp(Who::App, to).on_port(7002));
    add("a port of its own", &default, Listens::OnLocalhost, own_port.into());
    add("no server there", &excluded, Listens::Everywhere, everybody(UNSERVED));
    rows
}

/// Everybody in the pod dials all of these.
pub(crate) fn everybody(to: &[&str]) -> Vec<Connection> {
    Who::IN_POD.iter().flat_map(|who| tcp(*who, to)).collect()
}

const SIDECAR_PORTS: &[&str] = &[
    "127.0.0.1:15001",
    "127.0.0.1:15006",
    "10.77.0.2:15001",
    "10.77.0.2:15006",
    "[::1]:15001",
    "[fd77::2]:15006",
    "192.0.2.10:15001",
    "[2001:db8::10]:15006",
];
pub(crate) const PLACES: &[&str] = &[
    "127.0.0.1:8080",
    "127.0.0.6:8080",
    "10.77.0.2:8080",
    "10.88.0.2:8080",
    "10.77.0.3:8080",
    "10.88.0.3:8080",
    "192.0.2.10:80",
    "[::1]:8080",
    "[::6]:8080",
    "[fd77::2]:8080",
    "[fd88::2]:8080",
    "[fd77::3]:8080",
    "[fd88::3]:8080",
    "[2001:db8::10]:80",
];
pub(crate) const INBOUND: &[&str] = &[
    "10.77.0.2:8080",
    "10.77.0.2:15008",
    "10.77.0.2:4444",
    "10.88.0.2:80",
    "[fd77::2]:8080",
    "[fd88::2]:80",
];
const DNS_SERVERS: &[&str] =
    &["192.0.2.10:53", "127.0.0.53:53", "10.77.0.2:53", "[2001:db8::10]:53", "[::1]:53"];
const UNSERVED: &[&str] = &["127.0.0.1:4444", "192.0.2.10:4444", "[fd77::2]:4444", "[2001:db8::10]:4444"];

/// Sockets that are bound before they connect.
fn bound_sockets() -> Vec<Connection> {
    let four = (
        ["127.0.0.1", "127.0.0.6", "10.77.0.2", "10.88.0.2"],
        ["127.0.0.1:80", "10.77.0.2:80", "192.0.2.10:80"],
    );
    let six = (["::1", "::6", "fd77::2", "fd88::2"], ["[::1]:80", "[fd77::2]:80", "[2001:db8::10]:80"]);
    let mut connections = Vec::new();
    for (sources, destinations) in [four, six] {
        for who in [Who::App, Who::Proxy] {
            for source in sources {
                connections.extend(tcp(who, &destinations).into_iter().map(|one| one.from(source)));
            }
        }
    }
    connections
}
