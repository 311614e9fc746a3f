//! The truth table of inbound connections. The rows about rerouted virtual interfaces (13, 14) are not here:
//! ADD refuses that annotation.

use redirect_user::policy::{InterceptionMode, Policy};

use crate::outcome::Server::{Pod, Sidecar};
use crate::rows::{INBOUND, PLACES, Row, everybody, listed, policy, row, tcp, udp};
use crate::scenario::{Connection, Listens, Setup, Who};

/// Rows 1 to 12, 15 and 16.
pub(crate) fn inbound() -> Vec<Row> {
    let all = Policy::default();
    let excluded = policy(|policy| policy.exclude_inbound_ports.extend([9000]));
    let list = policy(|policy| policy.include_inbound_ports = listed(&[8080, 15020, 15008]));
    let none = policy(|policy| policy.include_inbound_ports = listed(&[]));
    let eth1 = policy(|policy| policy.exclude_interfaces = vec!["eth1".to_owned()]);
    let at = |port: u16| {
        let to = [format!("10.77.0.2:{port}"), format!("[fd77::2]:{port}"), format!("10.88.0.2:{port}")];
        to.iter().map(|to| Connection::tcp(Who::Peer, to)).collect::<Vec<_>>()
    };
    let at_any = |ports: &[u16]| ports.iter().flat_map(|port| at(*port)).collect::<Vec<_>>();
    let from_afar = vec![
        Connection::tcp(Who::Peer, "10.77.0.2:8080").from("192.0.2.10"),
        Connection::tcp(Who::Peer, "[fd77::2]:8080").from("2001:db8::10"),
    ];
    let mut rows = vec![
        row("1", &all, at(8080), Sidecar(15006)),
        row("1, from an address far away", &all, from_afar, Sidecar(15006)),
        row("2", &all, at(15008), Pod(15008)),
        row("2, although listed", &list, at(15008), Pod(15008)),
        row("4", &excluded, at(9000), Pod(9000)),
        row("5", &all, at(22), Sidecar(15006)),
        row("6", &all, at_any(&[15000, 15001, 15006]), Sidecar(15006)),
        row("7", &list, at(8080), Sidecar(15006)),
        row("8", &list, at(9000), Pod(9000)),
        row("9", &list, at(15020), Sidecar(15006)),
        row("10", &none, at(8080), Pod(8080)),
        row("11", &all, udp(Who::Peer, &["10.77.0.2:8080", "[fd77::2]:8080"]), Pod(8080)),
        row("12", &eth1, tcp(Who::Peer, &["10.88.0.2:8080", "[fd88::2]:8080"]), Pod(8080)),
        row(
            "12, other interface",
            &eth1,
            tcp(Who::Peer, &["10.77.0.2:8080", "[fd77::2]:8080"]),
            Sidecar(15006),
        ),
        row("15", &all, tcp(Who::App, &["10.77.0.2:8080", "[fd77::2]:8080"]), Pod(8080)),
        row("15, the sidecar", &all, tcp(Who::Proxy, &["10.77.0.2:8080", "[fd77::2]:8080"]), Sidecar(15006)),
        row("16", &all, at(4444), Sidecar(15006)),
    ];
    rows.extend([15020, 15021, 15090].map(|port| row("3", &all, at(port), Pod(port))));
    rows
}

/// The same in TPROXY mode, where port 15008 is no exception, and what the sidecar's user and group call in
/// their own pod.
pub(crate) fn tproxy() -> Vec<Row> {
    let mut rows = inbound();
    for row in &mut rows {
        row.setup.policy.interception_mode = InterceptionMode::Tproxy;
        if row.name.starts_with("2") {
            row.server = Some(Sidecar(15006));
        }
    }
    let mut add = |name: &str, setup: Setup, connections: Vec<Connection>| {
        rows.push(Row { name: name.to_owned(), setup, connections, server: None });
    };
    let mode = |change: &dyn Fn(&mut Policy)| {
        let policy = policy(|policy| {
            policy.interception_mode = InterceptionMode::Tproxy;
            change(policy);
        });
        Setup { policy, ..Setup::default() }
    };
    let self_calls =
        || everybody(&["10.77.0.2:8080", "10.77.0.2:15008", "10.88.0.2:15020", "127.0.0.9:8080"]);
    let self_calls6 = || everybody(&["[fd77::2]:8080", "[fd77::2]:15008", "[fd77::2]:15020", "[::6]:8080"]);
    let both = || [self_calls(), self_calls6()].concat();
    let on_localhost = Setup { sidecar: Listens::OnLocalhost, ..mode(&|_| {}) };
    add("self-calls to a sidecar on localhost", on_localhost, both());
    add("self-calls", mode(&|_| {}), [both(), everybody(PLACES)].concat());
    add("self-calls, a list", mode(&|policy| policy.include_inbound_ports = listed(&[8080, 15008])), both());
    add("self-calls, none captured", mode(&|policy| policy.include_inbound_ports = listed(&[])), both());
    add("self-calls, excluded", mode(&|policy| policy.exclude_outbound_ports = [8080].into()), both());
    add(
        "self-calls, DNS",
        mode(&|policy| policy.dns_capture = true),
        everybody(&["10.77.0.2:53", "[fd77::2]:53"]),
    );
    add("self-calls, lo", mode(&|policy| policy.exclude_interfaces = vec!["lo".to_owned()]), both());
    for sidecar in [Listens::OnLocalhost, Listens::DualStack, Listens::Nowhere] {
        add("listens", Setup { sidecar, ..mode(&|_| {}) }, [tcp(Who::Peer, INBOUND), self_calls()].concat());
    }
    rows
}
