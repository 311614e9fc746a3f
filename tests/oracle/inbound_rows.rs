//! The truth table of inbound connections. The rows about rerouted virtual interfaces (13, 14) are not here:
//! ADD refuses that annotation.

use redirect_user::policy::Policy;

use crate::outcome::Server::{Pod, Sidecar};
use crate::rows::{Row, listed, policy, row, tcp, udp};
use crate::scenario::{Connection, Who};

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
