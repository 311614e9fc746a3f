//! Two pods with a sidecar each, traffic both ways: original destination and client address in both access
//! logs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use harness::envoy::{Bootstrap, Entry, Envoy};
use harness::{Family, Node, Pod, Process, Seen, Service, kernel_test};

use crate::{APP_PORT, with_envoy};

/// Where Envoy's inbound side connects to the application from.
fn passthrough(family: Family) -> IpAddr {
    if family == Family::V6 {
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()
    } else {
        Ipv4Addr::new(127, 0, 0, 6).into()
    }
}

fn one(envoy: &mut Envoy) -> Entry {
    let mut entries = envoy.wait_for_entries(1).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// The one connection that a server in the process accepted since it was asked last.
fn one_seen(process: &Process) -> Seen {
    let mut seen = process.take_seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.remove(0)
}

/// A pod with its Envoy and an application.
struct Member {
    pod: Pod,
    envoy: Envoy,
    app: Process,
}

impl Member {
    fn new(node: &Node, name: &str) -> Member {
        let (pod, envoy) = with_envoy(node, name, &Bootstrap::default());
        let app = pod.app();
        app.serve(&Family::ALL.map(|family| pod.at(family, APP_PORT)), Service::Echo).unwrap();
        Member { pod, envoy, app }
    }
}

/// One connection from an application to the other pod's, and what four observers say about it.
fn round_trip(from: &mut Member, to: &mut Member, family: Family) {
    let dst = to.pod.at(family, APP_PORT);
    let socket = from.app.connect(dst).unwrap();
    socket.expect_echo(b"hello");
    let client = socket.sockname();
    assert_eq!(socket.peername(), Ok(dst));
    assert_eq!(client.ip(), from.pod.ip(family));
    drop(socket);
    let server = one_seen(&to.app);

    let out = one(&mut from.envoy);
    assert_eq!((out.listener.as_str(), out.original_dst, out.client), ("virtualOutbound", dst, client));
    assert_eq!((out.upstream, out.flags), (Some(dst), None));

    let into = one(&mut to.envoy);
    let listener = if family == Family::V6 { "virtualInbound6" } else { "virtualInbound" };
    assert_eq!((into.listener.as_str(), into.original_dst), (listener, dst));
    // The connection between the pods is the one that the first Envoy opened.
    assert_eq!(Some(into.client), out.upstream_local);
    assert_eq!(into.client.ip(), from.pod.ip(family));
    assert_eq!((into.upstream, into.flags), (Some(dst), None));

    assert_eq!(server.local, dst);
    assert_eq!(Some(server.client), into.upstream_local);
    assert_eq!(server.client.ip(), passthrough(family));
}

#[test]
fn both_ways_over_both_families() {
    kernel_test(|node| {
        let (mut one, mut two) = (Member::new(node, "one"), Member::new(node, "two"));
        for family in Family::ALL {
            round_trip(&mut one, &mut two, family);
            round_trip(&mut two, &mut one, family);
        }
        assert_eq!(node.handshakes(), []);
    });
}

#[test]
fn an_ipv4_address_dialled_on_an_ipv6_socket() {
    kernel_test(|node| {
        let (pod, mut envoy) = with_envoy(node, "pod", &Bootstrap::default());
        let server = node.pod("server");
        let process = server.app();
        process.serve(&[server.at(Family::V4, APP_PORT)], Service::Echo).unwrap();
        let dst = server.at(Family::V4, APP_PORT);
        let mapped = SocketAddr::new(server.ip4().to_ipv6_mapped().into(), APP_PORT);

        let socket = pod.app().tcp(Family::V6);
        socket.connect(mapped).unwrap();
        socket.expect_echo(b"hello");
        assert_eq!(socket.peername(), Ok(mapped));
        let client = socket.sockname();
        assert_eq!(client.ip().to_canonical(), pod.ip(Family::V4));
        drop(socket);

        let entry = one(&mut envoy);
        assert_eq!(entry.original_dst, dst);
        assert_eq!(entry.client, SocketAddr::new(client.ip().to_canonical(), client.port()));
    });
}

#[test]
fn a_caller_outside_the_mesh_keeps_its_address() {
    kernel_test(|node| {
        let (pod, mut envoy) = with_envoy(node, "pod", &Bootstrap::default());
        let outside = node.pod("outside");
        let (server, caller) = (pod.app(), outside.app());
        for family in Family::ALL {
            let dst = pod.at(family, APP_PORT);
            server.serve(&[dst], Service::Echo).unwrap();
            let socket = caller.connect(dst).unwrap();
            socket.expect_echo(b"hello");
            assert_eq!(one_seen(&server).client.ip(), passthrough(family));
            let client = socket.sockname();
            drop(socket);
            let entry = one(&mut envoy);
            assert_eq!((entry.original_dst, entry.client), (dst, client));
        }
    });
}
