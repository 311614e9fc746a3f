//! TPROXY mode with a real Envoy that has no capability: `transparent: true` and the listener filter
//! `original_src`, as istiod configures them. The application is told each client.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use harness::envoy::{Bootstrap, Envoy, OriginalSrc};
use harness::{Capabilities, Family, Node, Pod, Process, Service, Socket, User, kernel_test};

use crate::APP_PORT;

/// The port on which the application speaks HTTP.
const HTTP_PORT: u16 = 8090;

/// A pod in TPROXY mode with its Envoy, and another one that has as many addresses as it likes.
pub(crate) struct Scene {
    pub(crate) pod: Pod,
    envoy: Envoy,
    app: Process,
    pub(crate) clients: Pod,
}

impl Scene {
    pub(crate) fn new(node: &Node, original_src: OriginalSrc, user: User) -> Scene {
        let (pod, clients) = (node.pod("server"), node.pod("clients"));
        node.attach(&pod, &["--interception-mode", "TPROXY"]);
        let bootstrap = Bootstrap {
            original_src: Some(original_src),
            inbound_http_ports: vec![HTTP_PORT],
            ..Bootstrap::default()
        };
        let place = (pod.netns(), &*pod.container("istio-proxy"));
        let envoy =
            Envoy::start_as((user, Capabilities::None), "server", place, &bootstrap, node.dir()).unwrap();
        // All of two ranges are addresses of the other pod.
        clients.netns().sysctl("net/ipv6/ip_nonlocal_bind", "1");
        clients.netns().ip("route add local 198.18.0.0/16 dev lo\nroute add local 2001:db8:5::/64 dev lo");
        let (four, six) = (clients.ip(Family::V4), clients.ip(Family::V6));
        pod.netns().ip(&format!("route add 198.18.0.0/16 via {four}\nroute add 2001:db8:5::/64 via {six}"));
        let app = pod.app();
        let tell = Family::ALL.map(|family| pod.at(family, APP_PORT));
        app.serve(&tell, Service::Echo).unwrap();
        app.serve(&[pod.at(Family::V4, HTTP_PORT)], Service::Http).unwrap();
        Scene { pod, envoy, app, clients }
    }

    /// A connection to a port of the application from an address of its own.
    fn dial(&self, process: &Process, from: IpAddr, port: u16) -> Socket {
        let socket = process.tcp(Family::of(&from));
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        socket.connect(self.pod.at(Family::of(&from), port)).unwrap();
        socket
    }
}

/// The address of a client by its number.
pub(crate) fn client(family: Family, number: u16) -> IpAddr {
    let text = match family {
        Family::V4 => format!("198.18.{}.{}", number >> 8, number & 0xff),
        Family::V6 => format!("2001:db8:5::{number:x}"),
    };
    text.parse().unwrap()
}

/// One request.
fn ask(socket: &Socket) {
    socket.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").unwrap();
}

/// The client that the answer names.
fn named(socket: &Socket) -> SocketAddr {
    let mut answer = String::new();
    let body = |answer: &str| {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
        body.get(..length).map(str::to_owned)
    };
    loop {
        let part = socket.receive(4096).unwrap().data;
        assert!(!part.is_empty(), "the connection ended after {answer:?}");
        answer += std::str::from_utf8(&part).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        if let Some(body) = body(&answer) {
            return body.parse().unwrap();
        }
    }
}

#[test]
fn the_application_names_its_client() {
    kernel_test(|node| {
        for user in [User::PROXY, User::TPROXY] {
            for original_src in [OriginalSrc::Address, OriginalSrc::AddressAndPort] {
                let mut scene = Scene::new(node, original_src, user);
                let process = scene.clients.app();
                for family in Family::ALL {
                    let socket = scene.dial(&process, client(family, 7), APP_PORT);
                    socket.expect_echo(b"hello");
                    let seen = scene.app.take_seen().remove(0);
                    let own = socket.sockname();
                    assert_eq!((seen.listener, seen.client.ip()), (APP_PORT, own.ip()), "{user:?}");
                    // Envoy 1.40 knows the setting `bind_port` and leaves the port open all the same: a
                    // client that is told whole is in the tests of the data path.
                    assert_ne!(seen.client.port(), 0, "{original_src:?}");
                    drop(socket);
                    let entry = scene.envoy.wait_for_entries(1).unwrap().remove(0);
                    assert_eq!((entry.client, entry.upstream), (own, Some(scene.pod.at(family, APP_PORT))));
                    assert_eq!(entry.flags, None);
                }
                node.detach(&scene.pod);
            }
        }
    });
}

#[test]
fn a_thousand_clients_over_tcp() {
    kernel_test(|node| {
        let mut scene = Scene::new(node, OriginalSrc::Address, User::PROXY);
        let process = scene.clients.app();
        for family in Family::ALL {
            for number in 1..=500 {
                let from = client(family, number);
                let socket = scene.dial(&process, from, APP_PORT);
                socket.expect_echo(b"hello");
            }
        }
        // What the application has accepted, in its own words and order, and what the sidecar says.
        let all: Vec<IpAddr> = Family::ALL
            .into_iter()
            .flat_map(|family| (1..=500).map(move |number| client(family, number)))
            .collect();
        let told: Vec<IpAddr> = scene.app.take_seen().iter().map(|seen| seen.client.ip()).collect();
        assert_eq!(told, all);
        let entries = scene.envoy.wait_for_entries(1000).unwrap();
        let logged: BTreeSet<_> = entries.iter().map(|entry| entry.client.ip()).collect();
        assert_eq!(logged, all.into_iter().collect());
        assert_eq!((node.handshakes(), node.clients()), (vec![], vec![]));
    });
}

#[test]
fn a_thousand_clients_over_http() {
    kernel_test(|node| {
        let scene = Scene::new(node, OriginalSrc::Address, User::PROXY);
        let process = scene.clients.app();
        for number in 1..=1000 {
            let from = client(Family::V4, number);
            let socket = scene.dial(&process, from, HTTP_PORT);
            ask(&socket);
            assert_eq!(named(&socket).ip(), from);
        }
    });
}

#[test]
fn parallel_keep_alive_connections_are_not_mixed_up() {
    const CONNECTIONS: u16 = 64;
    const ROUNDS: usize = 20;
    kernel_test(|node| {
        let scene = Scene::new(node, OriginalSrc::Address, User::PROXY);
        let process = scene.clients.app();
        let sockets: Vec<_> = (1..=CONNECTIONS)
            .map(|number| {
                (client(Family::V4, number), scene.dial(&process, client(Family::V4, number), HTTP_PORT))
            })
            .collect();
        for _ in 0..ROUNDS {
            sockets.iter().for_each(|(_, socket)| ask(socket));
            for (from, socket) in &sockets {
                assert_eq!(named(socket).ip(), *from);
            }
        }
        // Envoy keeps a pool for each source: at least one connection for each client. A request that comes
        // before the last answer is booked gets another one, so there may be some more, but far from one for
        // each request.
        let stat = |name: &str| {
            let name = format!("cluster.InboundPassthroughCluster.{name}");
            let text = Envoy::admin(scene.pod.netns(), &format!("/stats?filter=^{name}$")).unwrap();
            text.trim().rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).unwrap()
        };
        assert_eq!(stat("upstream_rq_total"), usize::from(CONNECTIONS) * ROUNDS);
        let (connections, least) = (stat("upstream_cx_total"), usize::from(CONNECTIONS));
        assert!((least..least * ROUNDS / 4).contains(&connections), "{connections} connections");
    });
}
