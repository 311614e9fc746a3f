//! What must be left alone: the sidecar's own traffic, loopback, excluded ports and ranges, other namespaces.

use harness::{Event, Family, Pod, Process, Seen, Service, User, kernel_test};

use crate::{any, enrolled, far_away, localhost, passthrough};

/// Dials `to` and returns what the accepting side saw; the dialling side must agree on both addresses.
fn dial(process: &Process, to: std::net::SocketAddr) -> Seen {
    let socket = process.connect(to).unwrap_or_else(|error| panic!("dial {to}: {error}"));
    let seen = socket.seen();
    assert_eq!(socket.peername(), Ok(to));
    assert_eq!(socket.sockname(), seen.client);
    seen
}

/// Not captured: the listener that was dialled got it, and no original destination was made up.
fn direct(seen: &Seen, port: u16) {
    assert_eq!(seen.listener, port, "{seen:?}");
    assert_eq!(seen.local.port(), port, "{seen:?}");
    assert!(seen.original_dst.is_err(), "{seen:?}");
}

fn proxy_is_direct(user: User) {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "client"), node.pod("server"));
        let sidecar = pod.sidecar();
        let (process, peer) = (pod.process("istio-proxy", user), server.app());
        for family in Family::ALL {
            peer.serve(&[any(family, 8080)], Service::Tell).unwrap();
            let seen = dial(&process, server.at(family, 8080));
            direct(&seen, 8080);
            assert_eq!(seen.client.ip(), pod.ip(family));
        }
        assert_eq!(sidecar.take_seen(), []);
        assert_eq!(node.count(&pod, Event::ProxyDirect), 2);
    });
}

#[test]
fn the_proxys_uid() {
    proxy_is_direct(User { uid: 1337, gid: 1000 });
}

#[test]
fn the_proxys_gid() {
    proxy_is_direct(User { uid: 1000, gid: 1337 });
}

#[test]
fn root_is_not_the_proxy() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let root = pod.process("app", User::ROOT);
        for family in Family::ALL {
            assert_eq!(dial(&root, far_away(family, 80)).listener, 15001);
        }
    });
}

#[test]
fn another_uid_and_gid_can_be_the_proxy() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("client"), node.pod("server"));
        node.attach(&pod, &["--proxy-uid", "4242", "--proxy-gid", "4343"]);
        let sidecar = pod.process("istio-proxy", User { uid: 4242, gid: 4343 });
        sidecar.serve(&[any(Family::V4, 15001)], Service::Tell).unwrap();
        server.app().serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let peer = server.app();
        peer.serve(&[any(Family::V4, 8081)], Service::Tell).unwrap();
        for (user, listener) in
            [(User { uid: 4242, gid: 0 }, 8081), (User { uid: 0, gid: 4343 }, 8081), (User::PROXY, 15001)]
        {
            assert_eq!(
                dial(&pod.process("app", user), server.at(Family::V4, 8081)).listener,
                listener,
                "{user:?}"
            );
        }
        assert_eq!(sidecar.take_seen().len(), 1);
    });
}

#[test]
fn the_application_dials_localhost_and_its_own_address() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let sidecar = pod.sidecar();
        let (app, server) = (pod.app(), pod.app());
        for family in Family::ALL {
            server.serve(&[any(family, 8080)], Service::Tell).unwrap();
            for to in [localhost(family, 8080), pod.at(family, 8080)] {
                direct(&dial(&app, to), 8080);
            }
            // The unspecified address means this host.
            direct(&app.connect(any(family, 8080)).unwrap().seen(), 8080);
        }
        direct(&dial(&app, "127.99.1.2:8080".parse().unwrap()), 8080);
        // On a dual-stack socket too.
        direct(&app.connect("[::ffff:127.0.0.1]:8080".parse().unwrap()).unwrap().seen(), 8080);
        assert_eq!(sidecar.take_seen(), []);
    });
}

#[test]
fn the_proxy_calls_its_own_pod() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let (proxy, app) = (pod.proxy(), pod.app());
        for family in Family::ALL {
            app.serve(&[any(family, 8080), any(family, 15008), any(family, 15020)], Service::Tell).unwrap();
            let to = pod.at(family, 8080);
            let seen = dial(&proxy, to);
            assert_eq!((seen.listener, seen.original_dst, seen.client.ip()), (15006, Ok(to), pod.ip(family)));
            // Not so from the source that Envoy binds, to localhost, to HBONE and to excluded ports.
            let from_6 = proxy.tcp(family);
            from_6.bind(passthrough(family)).unwrap();
            from_6.connect(to).unwrap();
            let seen = from_6.seen();
            direct(&seen, 8080);
            assert_eq!(seen.client, from_6.sockname());
            assert_eq!(seen.client.ip(), passthrough(family).ip());
            direct(&dial(&proxy, localhost(family, 8080)), 8080);
            direct(&dial(&proxy, pod.at(family, 15008)), 15008);
            direct(&dial(&proxy, pod.at(family, 15020)), 15020);
        }
        assert_eq!(node.count(&pod, Event::SelfCallRedirected), 2);
    });
}

#[test]
fn the_probe_of_istio_validation_passes() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let proxy = pod.proxy();
        for family in Family::ALL {
            let _outbound = proxy.listen(localhost(family, 15001)).unwrap();
            let inbound = proxy.listen(localhost(family, 15006)).unwrap();
            let probe = proxy.tcp(family);
            probe.bind(localhost(family, 0)).unwrap();
            let mut to = passthrough(family);
            to.set_port(15002);
            probe.connect(to).unwrap();
            let accepted = inbound.accept().unwrap();
            let level = if family == Family::V6 { harness::Level::Ipv6 } else { harness::Level::Ip };
            let answer = accepted.original_dst_bytes(level, 32).unwrap();
            assert_eq!(harness::protocol::decode_sockaddr(&answer.buffer), Some(to));
        }
    });
}

#[test]
fn excluded_ports_and_ranges() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("client"), node.pod("server"));
        let ranges = format!("{}/32,{}/128", server.ip4(), server.ip6());
        node.attach(&pod, &["--exclude-outbound-ip-ranges", &ranges, "--exclude-outbound-ports", "9000"]);
        let _sidecar = pod.sidecar();
        let other = node.pod("other");
        let (app, peers) = (pod.app(), [server.app(), other.app()]);
        for family in Family::ALL {
            for peer in &peers {
                peer.serve(&[any(family, 8080), any(family, 9000)], Service::Tell).unwrap();
            }
            direct(&dial(&app, server.at(family, 8080)), 8080);
            direct(&dial(&app, other.at(family, 9000)), 9000);
            assert_eq!(dial(&app, other.at(family, 8080)).listener, 15001);
        }
        assert_eq!(node.count(&pod, Event::ExcludedDirect), 4);
    });
}

#[test]
fn only_included_ranges_and_ports() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("client"), node.pod("server"));
        node.attach(
            &pod,
            &[
                "--include-outbound-ip-ranges",
                "192.0.2.0/24,2001:db8::/32",
                "--include-outbound-ports",
                "9000",
            ],
        );
        let _sidecar = pod.sidecar();
        let (app, peer) = (pod.app(), server.app());
        for family in Family::ALL {
            peer.serve(&[any(family, 8080), any(family, 9000)], Service::Tell).unwrap();
            direct(&dial(&app, server.at(family, 8080)), 8080);
            assert_eq!(dial(&app, server.at(family, 9000)).listener, 15001);
            assert_eq!(dial(&app, far_away(family, 8080)).listener, 15001);
        }
        assert_eq!(node.count(&pod, Event::UnmatchedDirect), 2);
    });
}

#[test]
fn datagrams() {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "client"), node.pod("server"));
        let _sidecar = pod.sidecar();
        for family in Family::ALL {
            let (mine, theirs) = (pod.app().udp(family), server.app().udp(family));
            theirs.bind(any(family, 5353)).unwrap();
            mine.connect(server.at(family, 5353)).unwrap();
            mine.send(b"ping").unwrap();
            let from = theirs.receive(100).unwrap().from.unwrap();
            assert_eq!(from, mine.sockname());
            assert_eq!(mine.peername(), Ok(server.at(family, 5353)));
            theirs.send_to(b"pong", from).unwrap();
            assert_eq!(mine.receive(100).unwrap().data, b"pong");
        }
    });
}

#[test]
fn a_nested_network_namespace_in_the_pods_cgroup() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let sidecar = pod.sidecar();
        // As docker-in-docker or a VM's helper has it: in the pod's cgroup, but with a network of its own.
        let (inner, server) = (node.pod("inner"), node.pod("server"));
        let process = Process::start("nested", inner.netns(), &pod.container("app"), User::APP);
        let peer = server.app();
        for family in Family::ALL {
            peer.serve(&[any(family, 8080)], Service::Tell).unwrap();
            direct(&dial(&process, server.at(family, 8080)), 8080);
            // What listens there on the sidecar's ports is not the pod's sidecar.
            let fake = Process::start("fake", inner.netns(), &pod.container("istio-proxy"), User::PROXY);
            fake.serve(&[any(family, 15001), any(family, 15006)], Service::Tell).unwrap();
            direct(&dial(&process, localhost(family, 15001)), 15001);
            assert_eq!(dial(&pod.app(), far_away(family, 80)).listener, 15001);
            assert_eq!(fake.take_seen().len(), 1);
        }
        assert_eq!(sidecar.take_seen().len(), 2);
    });
}

#[test]
fn a_pod_that_is_not_enrolled_and_one_that_was() {
    kernel_test(|node| {
        let (plain, left, server) = (node.pod("plain"), enrolled(node, "left"), node.pod("server"));
        let _enrolled = enrolled(node, "enrolled");
        let peer = server.app();
        let check = |pod: &Pod, listener: u16| {
            for family in Family::ALL {
                assert_eq!(dial(&pod.app(), server.at(family, 8080)).listener, listener);
            }
        };
        peer.serve(&Family::ALL.map(|family| any(family, 8080)), Service::Tell).unwrap();
        check(&plain, 8080);
        let _sidecar = left.sidecar();
        check(&left, 15001);
        node.detach(&left);
        check(&left, 8080);
    });
}
