//! Somebody dials the pod: the sidecar gets the connection, with the client's address and the original
//! destination.

use std::collections::BTreeSet;

use harness::{Errno, Event, Family, Seen, Service, Sidecar, kernel_test};

use crate::{any, enrolled, passthrough};

fn to_the_sidecar(family: Family) {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "server"), node.pod("client"));
        let _sidecar = pod.sidecar();
        let client = other.app();
        // These ports have no listener; 22 and the sidecar's own are not special.
        for port in [80, 8080, 22, 15000, 15001, 15006, 15053] {
            let socket = client.connect(pod.at(family, port)).unwrap();
            assert_eq!(
                socket.seen(),
                Seen {
                    listener: 15006,
                    local: pod.at(family, port),
                    client: socket.sockname(),
                    original_dst: Ok(pod.at(family, port)),
                }
            );
            assert_eq!(socket.sockname().ip(), other.ip(family));
        }
        assert_eq!(node.count(&pod, Event::InboundRedirected), 7);
    });
}

#[test]
fn ipv4() {
    to_the_sidecar(Family::V4);
}

#[test]
fn ipv6() {
    to_the_sidecar(Family::V6);
}

#[test]
fn an_application_on_the_port_does_not_get_the_connection() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "server"), node.pod("client"));
        let _sidecar = pod.sidecar();
        let (app, client) = (pod.app(), other.app());
        for family in Family::ALL {
            app.serve(&[any(family, 8080), pod.at(family, 8081)], Service::Tell).unwrap();
            for port in [8080, 8081] {
                assert_eq!(client.connect(pod.at(family, port)).unwrap().seen().listener, 15006);
            }
        }
        assert_eq!(app.take_seen(), []);
    });
}

#[test]
fn excluded_ports_go_to_the_application() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("server"), node.pod("client"));
        node.attach(&pod, &["--exclude-inbound-ports", "9000"]);
        let sidecar = pod.sidecar();
        let (app, client) = (pod.app(), other.app());
        for family in Family::ALL {
            // 15008 is never captured, the three others are always excluded.
            for port in [9000, 15008, 15020, 15021, 15090] {
                app.serve(&[any(family, port)], Service::Tell).unwrap();
                let seen = client.connect(pod.at(family, port)).unwrap().seen();
                assert_eq!((seen.listener, seen.original_dst.is_err()), (port, true));
            }
            assert_eq!(client.connect(pod.at(family, 9001)).unwrap().seen().listener, 15006);
        }
        assert_eq!(sidecar.take_seen().len(), 2);
    });
}

#[test]
fn a_list_of_ports_captures_only_these_and_none_captures_nothing() {
    kernel_test(|node| {
        for (name, list) in [("list", "8080"), ("none", "")] {
            let (pod, other) = (node.pod(name), node.pod("client"));
            node.attach(&pod, &["--include-inbound-ports", list]);
            let _sidecar = pod.sidecar();
            let (app, client) = (pod.app(), other.app());
            for family in Family::ALL {
                app.serve(&[any(family, 8080), any(family, 8081)], Service::Tell).unwrap();
                let listener = |port| client.connect(pod.at(family, port)).unwrap().seen().listener;
                assert_eq!(listener(8080), if list.is_empty() { 8080 } else { 15006 });
                assert_eq!(listener(8081), 8081);
            }
        }
    });
}

#[test]
fn all_workers_of_the_sidecar_take_their_share() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "server"), node.pod("client"));
        let sidecars = [0, 1, 2].map(|_| Sidecar::builder(&pod).start());
        let client = other.app();
        for family in Family::ALL {
            let opened = client.open_many(&[pod.at(family, 8080)], 100);
            assert_eq!((opened.count, opened.error), (100, None));
        }
        // accept() is asynchronous: the last of them may still be in a queue.
        let mut shares = [0; 3];
        for _ in 0..100 {
            for (share, sidecar) in shares.iter_mut().zip(&sidecars) {
                *share += sidecar.take_seen().len();
            }
            if shares.iter().sum::<usize>() == 200 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(shares.iter().sum::<usize>(), 200, "{shares:?}");
        assert!(shares.iter().all(|share| *share > 20), "{shares:?}");
    });
}

#[test]
fn through_both_sidecars_to_the_application_and_back() {
    kernel_test(|node| {
        let (here, there) = (enrolled(node, "here"), enrolled(node, "there"));
        let sidecars = [&here, &there].map(|pod| Sidecar::builder(pod).service(Service::Forward).start());
        let (client, server) = (here.app(), there.app());
        for family in Family::ALL {
            server.serve(&[any(family, 8080)], Service::Echo).unwrap();
            let socket = client.connect(there.at(family, 8080)).unwrap();
            socket.expect_echo(&[b'x'; 60_000]);
            assert_eq!(socket.peername(), Ok(there.at(family, 8080)));
            let [out, into, app] = [sidecars[0].take_seen(), sidecars[1].take_seen(), server.take_seen()];
            assert_eq!((out.len(), into.len(), app.len()), (1, 1, 1));
            assert_eq!((out[0].listener, out[0].client), (15001, socket.sockname()));
            assert_eq!(out[0].original_dst, Ok(there.at(family, 8080)));
            assert_eq!((into[0].listener, into[0].client.ip()), (15006, here.ip(family)));
            assert_eq!(into[0].original_dst, Ok(there.at(family, 8080)));
            // The application sees Envoy's bound source, and the address that the client dialled.
            assert_eq!(
                (app[0].client.ip(), app[0].local),
                (passthrough(family).ip(), there.at(family, 8080))
            );
        }
    });
}

#[test]
fn the_pods_private_prefix_cannot_be_reached_from_outside() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "server"), node.pod("client"));
        let _sidecar = pod.sidecar();
        let client = other.process("app", harness::User::ROOT);
        other.netns().ip(&format!("route add fd72:6564:6972::/64 via {}", pod.ip6()));
        let to = std::net::SocketAddr::new("fd72:6564:6972::1234".parse().unwrap(), 15001);
        assert_eq!(client.connect(to).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(node.count(&pod, Event::InboundForeign), 1);
    });
}

#[test]
fn addresses_added_later_are_captured_too() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "server"), node.pod("client"));
        let _sidecar = pod.sidecar();
        pod.netns().ip("addr add 10.77.9.9/16 dev eth0\naddr add fd77::9:9/64 dev eth0 nodad");
        let client = other.app();
        let ports: BTreeSet<_> = ["10.77.9.9:80", "[fd77::9:9]:80"]
            .map(|to| client.connect(to.parse().unwrap()).unwrap().seen().listener)
            .into();
        assert_eq!(ports, BTreeSet::from([15006]));
    });
}
