//! The truth table of outbound connections.

use redirect_user::policy::{OwnerGroups, Policy};

use crate::outcome::Server::{DnsProxy, Peer, Pod, Sidecar};
use crate::rows::{Row, include, policy, ranges, row, tcp, udp};
use crate::scenario::{Connection, Who};

/// Rows 1 to 9, 16 to 28: everything is included.
pub(crate) fn everything_included() -> Vec<Row> {
    let default = Policy::default();
    let ports = policy(|policy| policy.exclude_outbound_ports = [9000].into());
    let eth1 = policy(|policy| policy.exclude_interfaces = vec!["eth1".to_owned()]);
    let but_2000 = policy(|policy| policy.owner_groups = OwnerGroups::AllBut([2000].into()));
    let only_1000 = policy(|policy| policy.owner_groups = OwnerGroups::Only([1000].into()));
    let remote = &["192.0.2.10:80", "[2001:db8::10]:80"];
    let own = &["10.77.0.2:8080", "[fd77::2]:8080", "10.88.0.2:8080"];
    let own_from = |who, four, six| {
        vec![Connection::tcp(who, own[0]).from(four), Connection::tcp(who, own[1]).from(six)]
    };
    vec![
        row("1", &default, tcp(Who::App, &["127.0.0.1:8080"]), Pod(8080)),
        row("2", &default, tcp(Who::App, &["127.0.0.2:8080", "127.255.255.254:8080"]), Pod(8080)),
        row("3", &default, tcp(Who::App, &["[::1]:8080"]), Pod(8080)),
        row("4", &default, tcp(Who::App, own), Pod(8080)),
        row("5", &default, tcp(Who::App, remote), Sidecar(15001)),
        row(
            "6",
            &default,
            tcp(Who::App, &["10.77.0.3:8080", "198.51.100.10:80", "[fd77::3]:80"]),
            Sidecar(15001),
        ),
        row("6, IPv4-mapped", &default, vec![Connection::tcp(Who::App, remote[0]).mapped()], Sidecar(15001)),
        row("7", &default, tcp(Who::App, &["192.0.2.10:15008", "[fd77::3]:15008"]), Sidecar(15001)),
        row("8", &default, tcp(Who::App, &["192.0.2.10:15020", "[fd77::3]:15020"]), Peer(15020)),
        row("9", &default, tcp(Who::App, &["169.254.169.254:80"]), Sidecar(15001)),
        row("11", &ports, tcp(Who::App, &["192.0.2.10:9000", "[fd77::3]:9000"]), Peer(9000)),
        row("11, over lo", &ports, tcp(Who::App, &["10.77.0.2:9000", "[::1]:9000"]), Pod(9000)),
        row("16", &eth1, tcp(Who::App, &["10.88.0.3:80", "[fd88::3]:80"]), Peer(80)),
        row("16, other interface", &eth1, tcp(Who::App, remote), Sidecar(15001)),
        row("17, excluded", &but_2000, tcp(Who::OtherGroup, remote), Peer(80)),
        row("17, not excluded", &but_2000, tcp(Who::App, remote), Sidecar(15001)),
        row("17, included", &only_1000, tcp(Who::App, remote), Sidecar(15001)),
        row("17, not included", &only_1000, tcp(Who::OtherGroup, remote), Peer(80)),
        row("18", &default, tcp(Who::Proxy, &["127.0.0.1:8080", "[::1]:8080"]), Pod(8080)),
        row("18, uid", &default, tcp(Who::ProxyUid, &["127.0.0.1:8080", "[::1]:8080"]), Pod(8080)),
        row("19", &default, own_from(Who::Proxy, "127.0.0.6", "::6"), Pod(8080)),
        row("20", &default, own_from(Who::ProxyUid, "10.77.0.2", "fd77::2"), Sidecar(15006)),
        row("21", &default, tcp(Who::ProxyUid, &["10.77.0.2:15008", "[fd77::2]:15008"]), Pod(15008)),
        row("22", &ports, tcp(Who::ProxyUid, &["10.77.0.2:9000", "[fd77::2]:9000"]), Pod(9000)),
        row(
            "23",
            &default,
            vec![Connection::tcp(Who::ProxyUid, "127.0.0.2:8080").from("127.0.0.1")],
            Sidecar(15006),
        ),
        row("23, validation", &default, validation(), Sidecar(15006)),
        row("24", &default, tcp(Who::ProxyUid, &["192.0.2.10:80", "[fd77::3]:80"]), Peer(80)),
        row("25", &default, tcp(Who::ProxyGid, &["127.0.0.1:8080", "[::1]:8080"]), Pod(8080)),
        row("25, own address", &default, tcp(Who::ProxyGid, own), Pod(8080)),
        row("26", &default, tcp(Who::ProxyGid, &["192.0.2.10:80", "[fd77::3]:80"]), Peer(80)),
        row("27", &default, tcp(Who::Proxy, own), Sidecar(15006)),
        row("28", &default, udp(Who::App, &["192.0.2.10:8080", "[fd77::3]:8080"]), Peer(8080)),
        row("28, DNS is not captured", &default, udp(Who::App, &["192.0.2.10:53", "[fd77::3]:53"]), Peer(53)),
    ]
}

/// The probe of istio-validation: the sidecar's ids, from localhost to the passthrough address.
fn validation() -> Vec<Connection> {
    vec![
        Connection::tcp(Who::Proxy, "127.0.0.6:15002").from("127.0.0.1"),
        Connection::tcp(Who::Proxy, "[::6]:15002").from("::1"),
    ]
}

/// Rows 10, 12 to 15, 29 to 33: ranges and ports decide.
pub(crate) fn some_included() -> Vec<Row> {
    let excluded = policy(|policy| {
        policy.exclude_outbound_ip_ranges = ranges(&["192.0.2.0/28", "2001:db8::10/128"]);
        policy.include_outbound_ports = [9001].into();
    });
    let included = policy(|policy| {
        policy.include_outbound_ip_ranges = include(&["192.0.2.20/32", "2001:db8::20/128"]);
        policy.include_outbound_ports = [9000, 9001].into();
        policy.exclude_outbound_ports = [9000].into();
    });
    let loopback = policy(|policy| policy.include_outbound_ip_ranges = include(&["127.0.0.0/8", "::1/128"]));
    let own_included = policy(|policy| {
        policy.include_outbound_ip_ranges = include(&["127.0.0.2/32", "10.77.0.0/16", "fd77::/64"]);
    });
    let own = &["10.77.0.2:8080", "[fd77::2]:8080"];
    vec![
        row("10", &excluded, tcp(Who::App, &["192.0.2.10:80", "[2001:db8::10]:80"]), Peer(80)),
        row(
            "10, next to it",
            &excluded,
            tcp(Who::App, &["192.0.2.20:80", "[2001:db8::20]:80"]),
            Sidecar(15001),
        ),
        row("12", &excluded, tcp(Who::App, &["192.0.2.10:9001", "[2001:db8::10]:9001"]), Peer(9001)),
        row("13", &included, tcp(Who::App, &["192.0.2.10:9001", "[2001:db8::10]:9001"]), Sidecar(15001)),
        row("13, inside", &included, tcp(Who::App, &["192.0.2.20:80", "[2001:db8::20]:80"]), Sidecar(15001)),
        row("14", &included, tcp(Who::App, &["192.0.2.10:80", "[2001:db8::10]:80"]), Peer(80)),
        row("15", &included, tcp(Who::App, &["192.0.2.20:9000", "[2001:db8::10]:9000"]), Peer(9000)),
        row("29", &loopback, tcp(Who::App, &["127.0.0.1:8080", "[::1]:8080"]), Pod(8080)),
        row("30", &loopback, tcp(Who::App, &["127.0.0.2:8080", "127.255.255.254:8080"]), Sidecar(15001)),
        row("31", &loopback, tcp(Who::App, own), Pod(8080)),
        row("32", &own_included, tcp(Who::App, own), Sidecar(15001)),
        row("33", &loopback, tcp(Who::ProxyGid, own), Sidecar(15006)),
    ]
}

/// Rows 34 to 45: DNS is captured.
pub(crate) fn dns() -> Vec<Row> {
    let all = policy(|policy| policy.dns_capture = true);
    let port_excluded = policy(|policy| {
        policy.dns_capture = true;
        policy.exclude_outbound_ports = [53].into();
    });
    let group = policy(|policy| {
        policy.dns_capture = true;
        policy.owner_groups = OwnerGroups::AllBut([2000].into());
    });
    let range = policy(|policy| {
        policy.dns_capture = true;
        policy.exclude_outbound_ip_ranges = ranges(&["192.0.2.0/24", "2001:db8::/32"]);
    });
    let listed = policy(|policy| {
        policy.dns_capture = true;
        policy.dns_servers = include(&["192.0.2.10/32", "2001:db8::10/128"]);
    });
    let remote = &["192.0.2.10:53", "[2001:db8::10]:53"];
    let local = &["127.0.0.1:53", "127.0.0.53:53", "[::1]:53"];
    let own = &["10.77.0.2:53", "[fd77::2]:53"];
    vec![
        row("34", &all, tcp(Who::App, remote), DnsProxy),
        row("34, UDP", &all, udp(Who::App, remote), DnsProxy),
        row("35", &all, tcp(Who::App, local), DnsProxy),
        row("35, UDP", &all, udp(Who::App, local), DnsProxy),
        row("36", &all, tcp(Who::App, &["10.77.0.2:8080", "[fd77::2]:8080"]), Pod(8080)),
        row("37", &all, udp(Who::App, &["192.0.2.10:8080", "[fd77::3]:8080"]), Peer(8080)),
        row("37, over lo", &all, udp(Who::App, &["127.0.0.1:8080", "[fd77::2]:8080"]), Pod(8080)),
        row("38", &all, tcp(Who::ProxyUid, remote), Peer(53)),
        row("38, UDP", &all, udp(Who::ProxyUid, remote), Peer(53)),
        row("38, over lo", &all, [tcp(Who::Proxy, own), udp(Who::Proxy, own)].concat(), Pod(53)),
        row("39", &all, tcp(Who::ProxyGid, own), Sidecar(15006)),
        row("40", &all, udp(Who::ProxyGid, remote), Peer(53)),
        row("40, over lo", &all, udp(Who::ProxyGid, own), Pod(53)),
        row("41", &port_excluded, [tcp(Who::App, remote), udp(Who::App, remote)].concat(), Peer(53)),
        row("41, over lo", &port_excluded, [tcp(Who::App, own), udp(Who::App, own)].concat(), Pod(53)),
        row("42", &listed, tcp(Who::App, remote), DnsProxy),
        row("42, not listed", &listed, tcp(Who::App, &["198.51.100.10:53", "[fd77::3]:53"]), Sidecar(15001)),
        row("42, not listed, over lo", &listed, tcp(Who::App, &["127.0.0.1:53"]), Pod(53)),
        row("43", &listed, udp(Who::App, remote), DnsProxy),
        row("43, not listed", &listed, udp(Who::App, &["198.51.100.10:53", "[fd77::3]:53"]), Peer(53)),
        row("43, not listed, over lo", &listed, udp(Who::App, &["127.0.0.1:53", "10.77.0.2:53"]), Pod(53)),
        row("44", &group, [tcp(Who::OtherGroup, remote), udp(Who::OtherGroup, remote)].concat(), Peer(53)),
        row("45", &range, [tcp(Who::App, remote), udp(Who::App, remote)].concat(), DnsProxy),
    ]
}
