//! Who was on the DNS proxy's port before the pod was attached, or before the maps were lost.

use std::fs;
use std::net::SocketAddr;

use harness::cli::Outcome;
use harness::{DnsProxy, Errno, Event, Family, Node, Pod, Process, User, any, kernel_test};

use crate::server::question;

/// An address without an owner.
fn server(family: Family) -> SocketAddr {
    let ip = if family == Family::V6 { "2001:db8::53" } else { "192.0.2.53" };
    SocketAddr::new(ip.parse().expect("an address"), 53)
}

/// What becomes of a question on a connected socket: it is told when no socket takes it.
fn asked(app: &Process, to: SocketAddr) -> Result<(), Errno> {
    let socket = app.udp(Family::of(&to.ip()));
    socket.connect(to)?;
    socket.send(&question(1))?;
    socket.receive(512).map(drop)
}

#[test]
fn a_socket_of_another_user_on_the_dns_proxys_port_gets_no_question() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let (thief, app) = (pod.process("thief", User::APP), pod.app());
        let stolen = thief.udp(Family::V6);
        stolen.bind(any(Family::V6, 15053)).unwrap();
        for repeated in [false, true] {
            node.attach(&pod, &["--dns-capture"]);
            for family in Family::ALL {
                assert_eq!(asked(&app, server(family)), Err(Errno::ECONNREFUSED), "{family:?} {repeated}");
                // What is sent on loopback has arrived when the call returns.
                let unconnected = app.udp(family);
                unconnected.send_to(&question(2), server(family)).unwrap();
                assert!(stolen.receive_within(512, 0).is_err(), "{family:?} {repeated}");
            }
        }
        assert_eq!(node.count(&pod, Event::DnsRefused), 8);
        drop(stolen);
        let mut proxy = DnsProxy::start(&pod);
        for family in Family::ALL {
            assert_eq!(asked(&app, server(family)), Ok(()));
        }
        assert_eq!(proxy.take_questions().len(), 2);
    });
}

/// The proxy answers the pod at a server's address, and no one outside.
fn assert_for_the_pod_alone(pod: &Pod, other: &Pod, what: &str) {
    let (app, outsider) = (pod.app(), other.app());
    for family in Family::ALL {
        assert_eq!(asked(&app, server(family)), Ok(()), "{what}");
        assert_eq!(asked(&outsider, pod.at(family, 15053)), Err(Errno::ECONNREFUSED), "{what}");
    }
}

#[test]
fn the_dns_proxys_wildcard_socket_is_asked_and_closed_to_the_outside_whoever_made_it_so() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let early = DnsProxy::with(&pod, User::PROXY, &["[::]:15053"]);
        node.attach(&pod, &["--dns-capture"]);
        assert_for_the_pod_alone(&pod, &other, "from before attach");
        drop(early);
        let _proxy = DnsProxy::start(&pod);
        assert_for_the_pod_alone(&pod, &other, "opened by the programs");
        lose_maps(node);
        assert_for_the_pod_alone(&pod, &other, "after the maps were lost");
    });
}

/// All pins go, and with them the maps; then the pods are attached again.
fn lose_maps(node: &Node) {
    fs::remove_dir_all(node.bpffs().join("redirect-cni")).expect("remove all pins");
    harness::await_no_links();
    let outcome = Outcome::of(node.redirect().arg("repair"));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn a_proxy_that_asks_for_the_wildcard_address_itself_has_it() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        node.attach(&pod, &["--dns-capture"]);
        let _proxy = DnsProxy::with(&pod, User::PROXY, &["[::]:15053"]);
        for family in Family::ALL {
            assert_eq!(asked(&pod.app(), server(family)), Ok(()));
            assert_eq!(asked(&other.app(), pod.at(family, 15053)), Ok(()));
        }
    });
}
