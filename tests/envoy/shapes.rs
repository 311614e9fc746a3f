//! The shapes that an Envoy's listeners can have: handed-over HTTP, IPv4 only, one socket for both families,
//! and the ports that are not captured.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use harness::envoy::{Bootstrap, Envoy, Families, HEALTH_PORT, OUTBOUND_PORT};
use harness::{Family, Service, kernel_test};

use crate::{APP_PORT, with_envoy};

/// Connects to a server outside the pod and returns what Envoy logged.
fn captured(families: Families, family: Family) {
    kernel_test(|node| {
        let bootstrap = Bootstrap { families, ..Bootstrap::default() };
        let (pod, mut envoy) = with_envoy(node, "pod", &bootstrap);
        let server = node.pod("server");
        let process = server.app();
        let dst = server.at(family, APP_PORT);
        process.serve(&[dst], Service::Echo).unwrap();
        let socket = pod.app().connect(dst).unwrap();
        socket.expect_echo(b"hello");
        let client = socket.sockname();
        drop(socket);
        let entry = envoy.wait_for_entries(1).unwrap().remove(0);
        assert_eq!((entry.original_dst, entry.client, entry.upstream), (dst, client, Some(dst)));
    });
}

#[test]
fn listeners_for_ipv4_only() {
    captured(Families::V4, Family::V4);
}

#[test]
fn one_socket_for_both_families_gets_ipv4() {
    captured(Families::Compat, Family::V4);
}

#[test]
fn one_socket_for_both_families_gets_ipv6() {
    captured(Families::Compat, Family::V6);
}

#[test]
fn http_is_handed_to_the_listener_of_its_port() {
    kernel_test(|node| {
        let bootstrap = Bootstrap { http_ports: vec![9080], ..Bootstrap::default() };
        let (pod, mut envoy) = with_envoy(node, "pod", &bootstrap);
        let server = node.pod("server");
        let process = server.app();
        for family in Family::ALL {
            let dst = server.at(family, 9080);
            let listener = process.listen(dst).unwrap();
            let client = pod.app().connect(dst).unwrap();
            client.send(b"GET /hello HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n").unwrap();
            let accepted = listener.accept().unwrap();
            let request = accepted.receive(4096).unwrap().data;
            assert!(request.starts_with(b"GET /hello HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&request));
            accepted.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            let answer = client.receive(4096).unwrap().data;
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
            let entry = envoy.wait_for_entries(1).unwrap().remove(0);
            assert_eq!((entry.listener.as_str(), entry.original_dst), ("0.0.0.0_9080", dst));
            assert_eq!((entry.path.as_deref(), entry.status), (Some("/hello"), Some(200)));
        }
    });
}

/// Envoy must be able to tell a connection that was made to its port from one that was captured.
#[test]
fn a_connection_to_the_sidecar_itself_has_no_original_destination() {
    kernel_test(|node| {
        let (pod, mut envoy) = with_envoy(node, "pod", &Bootstrap::default());
        let dst = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), OUTBOUND_PORT);
        let socket = pod.app().connect(dst).unwrap();
        assert_eq!(socket.receive(1).unwrap().data, b"", "the black hole closes the connection");
        let entry = envoy.wait_for_entries(1).unwrap().remove(0);
        assert_eq!((entry.listener.as_str(), entry.original_dst), ("virtualOutbound-blackhole", dst));
    });
}

#[test]
fn a_kubelet_reaches_the_health_port_directly() {
    kernel_test(|node| {
        let (pod, mut envoy) = with_envoy(node, "pod", &Bootstrap::default());
        let kubelet = node.pod("kubelet");
        for family in Family::ALL {
            let answer = kubelet.netns().run(|| {
                let mut stream = TcpStream::connect(pod.at(family, HEALTH_PORT)).unwrap();
                stream
                    .write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            });
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
        // Nothing went through virtualInbound; the health listener does not log.
        assert_eq!(envoy.new_entries().unwrap(), []);
        let stats =
            Envoy::admin(pod.netns(), "/stats?filter=listener.0.0.0.0_15006.downstream_cx_total").unwrap();
        assert_eq!(stats.trim(), "listener.0.0.0.0_15006.downstream_cx_total: 0");
    });
}
