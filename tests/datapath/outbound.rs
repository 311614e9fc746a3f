//! An application dials out: the sidecar gets the connection and learns where it was meant to go, the
//! application notices nothing.

use std::net::SocketAddr;
use std::process::Command;

use harness::{Errno, Event, Family, Process, Seen, Service, Sidecar, Socket, kernel_test};

use crate::{any, enrolled, far_away, localhost, mapped};

/// What the sidecar must see of a connection from `client` to `dialled`.
fn captured(seen: &Seen, client: SocketAddr, dialled: SocketAddr) {
    assert_eq!(seen.listener, 15001, "{seen:?}");
    assert_eq!(seen.original_dst, Ok(dialled), "{seen:?}");
    assert_eq!(seen.client, client, "{seen:?}");
}

/// Dials `to` and checks both sides' view.
fn dial(app: &Process, to: SocketAddr, own: std::net::IpAddr) -> Socket {
    let socket = app.connect(to).unwrap();
    captured(&socket.seen(), socket.sockname(), to);
    assert_eq!(socket.sockname().ip(), own);
    assert_eq!(socket.peername(), Ok(to));
    socket
}

#[test]
fn ipv4() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        dial(&pod.app(), far_away(Family::V4, 80), pod.ip(Family::V4));
    });
}

#[test]
fn ipv6() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        dial(&pod.app(), far_away(Family::V6, 80), pod.ip(Family::V6));
    });
}

#[test]
fn ipv4_mapped_on_an_ipv6_socket() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let socket = pod.app().connect(mapped(far_away(Family::V4, 80))).unwrap();
        let own = socket.sockname();
        assert_eq!(own.ip(), mapped(pod.at(Family::V4, 0)).ip());
        captured(&socket.seen(), pod.at(Family::V4, own.port()), far_away(Family::V4, 80));
        assert_eq!(socket.peername(), Ok(mapped(far_away(Family::V4, 80))));
    });
}

#[test]
fn a_dual_stack_listener_serves_both_families() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let (app, proxy) = (pod.app(), pod.proxy());
        let listener = proxy.listen(any(Family::V6, 15001)).unwrap();
        for family in Family::ALL {
            let client = app.connect(far_away(family, 80)).unwrap();
            let accepted = listener.accept().unwrap();
            let level = if family == Family::V6 { harness::Level::Ipv6 } else { harness::Level::Ip };
            assert_eq!(accepted.original_dst(level), Ok(far_away(family, 80)));
            assert_eq!(accepted.peername(), Ok(mapped(client.sockname())));
        }
    });
}

#[test]
fn the_sidecar_may_listen_on_localhost_only() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = Sidecar::builder(&pod).localhost().start();
        let app = pod.app();
        for family in Family::ALL {
            dial(&app, far_away(family, 80), pod.ip(family));
        }
    });
}

#[test]
fn the_listener_may_be_older_than_the_application_and_younger_than_attach_only() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let mut sidecar = Sidecar::builder(&pod).workers(3).start();
        let app = pod.app();
        for _ in 0..2 {
            sidecar.stop_worker();
            for family in Family::ALL {
                dial(&app, far_away(family, 80), pod.ip(family));
            }
        }
    });
}

#[test]
fn nonblocking_connect() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            let socket = app.tcp_nonblocking(family);
            assert_eq!(socket.connect(far_away(family, 443)), Err(Errno::EINPROGRESS));
            assert_eq!(socket.await_connect(), Ok(()));
            captured(&socket.seen(), socket.sockname(), far_away(family, 443));
            assert_eq!(socket.peername(), Ok(far_away(family, 443)));
        }
    });
}

#[test]
fn a_socket_bound_to_a_port_keeps_it() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            // A port that has just been used cannot be bound again at once.
            let [free, own] = if family == Family::V6 { [40001, 40002] } else { [40003, 40004] };
            for (bind, port) in [(any(family, free), free), (pod.at(family, own), own)] {
                let socket = app.tcp(family);
                socket.bind(bind).unwrap();
                socket.connect(far_away(family, 80)).unwrap();
                captured(&socket.seen(), pod.at(family, port), far_away(family, 80));
                assert_eq!(socket.sockname(), pod.at(family, port));
            }
        }
    });
}

#[test]
fn one_local_port_to_two_destinations_at_once() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // The kernel tells such connections apart by their destination; after the rewrite it still must.
        for family in Family::ALL {
            let sockets = [80, 81, 82].map(|port| {
                let socket = app.tcp(family);
                socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
                socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
                socket.bind(pod.at(family, 40000)).unwrap();
                socket.connect(far_away(family, port)).unwrap();
                (socket, port)
            });
            for (socket, port) in &sockets {
                captured(&socket.seen(), pod.at(family, 40000), far_away(family, *port));
            }
        }
    });
}

#[test]
fn connect_again_after_the_sidecar_refused() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let app = pod.app();
        for family in Family::ALL {
            let socket = app.tcp(family);
            assert_eq!(socket.connect(far_away(family, 80)), Err(Errno::ECONNREFUSED));
            let _sidecar = pod.sidecar();
            assert_eq!(socket.connect(far_away(family, 81)), Ok(()));
            captured(&socket.seen(), socket.sockname(), far_away(family, 81));
            assert_eq!(socket.peername(), Ok(far_away(family, 81)));
        }
    });
}

#[test]
fn connect_again_from_redirected_to_direct() {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "client"), node.pod("server"));
        let (app, peer) = (pod.app(), server.app());
        for family in Family::ALL {
            peer.serve(&[any(family, 15020)], Service::Tell).unwrap();
            let socket = app.tcp(family);
            assert_eq!(socket.connect(far_away(family, 80)), Err(Errno::ECONNREFUSED));
            // Port 15020 is excluded: now the record of the first call must not speak for the second.
            assert_eq!(socket.connect(server.at(family, 15020)), Ok(()));
            assert_eq!(socket.seen().client, socket.sockname());
            assert_eq!(socket.peername(), Ok(server.at(family, 15020)));
        }
    });
}

#[test]
fn connect_again_from_direct_to_redirected() {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "client"), node.pod("server"));
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            let socket = app.tcp(family);
            assert_eq!(socket.connect(server.at(family, 15020)), Err(Errno::ECONNREFUSED));
            assert_eq!(socket.connect(far_away(family, 80)), Ok(()));
            captured(&socket.seen(), socket.sockname(), far_away(family, 80));
        }
    });
}

#[test]
fn two_pods_with_the_same_addresses_and_ports_at_the_same_time() {
    kernel_test(|node| {
        let (red, blue) = (node.new_wire("red"), node.new_wire("blue"));
        let pods = [red.pod("red"), blue.pod("blue")];
        assert_eq!(pods[0].ip4(), pods[1].ip4());
        let apps = pods.each_ref().map(|pod| {
            node.attach(pod, &[]);
            // On localhost only, so that the rewritten connections have the same four numbers in both pods.
            (Sidecar::builder(pod).localhost().start(), pod.app(), pod.ip6())
        });
        for family in Family::ALL {
            let first = if family == Family::V6 { 41000 } else { 42000 };
            for port in first..first + 20 {
                let sockets = [0, 1].map(|which| {
                    let socket = apps[which].1.tcp(family);
                    socket.bind(any(family, port)).unwrap();
                    (socket, far_away(family, 8000 + which as u16))
                });
                for (socket, to) in &sockets {
                    socket.connect(*to).unwrap();
                }
                for (socket, to) in &sockets {
                    assert_eq!(socket.seen().original_dst, Ok(*to));
                    assert_eq!(socket.peername(), Ok(*to));
                }
            }
        }
    });
}

#[test]
fn to_ports_of_the_sidecar_itself() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            for port in [15001, 15006, 15008] {
                dial(&app, far_away(family, port), pod.ip(family));
            }
            // Dialled on purpose, not redirected: there is no original destination to tell.
            let direct = app.connect(localhost(family, 15001)).unwrap().seen();
            assert!(direct.original_dst.is_err(), "{direct:?}");
        }
    });
}

#[test]
fn with_syn_cookies() {
    kernel_test(|node| {
        let pod = enrolled(node, "client");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // 2: always, as a listener under attack does; the accepted socket is then made from the ACK alone.
        pod.netns().sysctl("net/ipv4/tcp_syncookies", "2");
        for family in Family::ALL {
            dial(&app, far_away(family, 80), pod.ip(family));
        }
        let counters = pod.netns().output_of(Command::new("cat").arg("/proc/net/netstat"));
        assert_eq!(netstat(&counters, "SyncookiesRecv"), 2);
    });
}

/// A counter of `/proc/net/netstat`: a line of names, a line of numbers.
fn netstat(text: &str, name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let column = lines[0].iter().position(|column| *column == name).expect("a counter of that name");
    lines[1][column].parse().expect("a number")
}

#[test]
fn a_destination_without_a_slot_is_told_apart_from_their_owners() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            let all = crate::crowded(family);
            for _ in 0..2 {
                for to in all.iter().copied() {
                    let socket = app.connect(to).unwrap();
                    assert_eq!(socket.peername(), Ok(to));
                    let seen = socket.seen();
                    assert_eq!(seen.original_dst, Ok(to));
                    assert_eq!(seen.client, socket.sockname());
                    assert_eq!(seen.client.ip(), pod.ip(family));
                }
            }
        }
        assert_eq!(node.count(&pod, Event::HandoffTaken), 4);
        assert_eq!(node.handshakes(), []);
        node.detach(&pod);
        assert!(node.map_entries().iter().all(|(_, entries)| *entries == 0), "{:?}", node.map_entries());
    });
}

/// One socket goes from a destination with a slot to one without, and to one that is direct.
#[test]
fn a_socket_that_is_connected_anew_forgets_its_past() {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "pod"), node.pod("server"));
        let peer = server.app();
        peer.serve(&[crate::any(Family::V4, 15020)], harness::Service::Tell).unwrap();
        let app = pod.app();
        let all = crate::crowded(Family::V4);
        let (first, second) = (all[0], all[all.len() - 1]);
        let sidecar = pod.sidecar();
        for to in &all {
            drop(app.connect(*to).unwrap());
        }
        drop(sidecar);
        // Without a listener the same socket can dial again.
        let socket = app.tcp(Family::V4);
        for to in [first, second, first] {
            assert_eq!(socket.connect(to), Err(Errno::ECONNREFUSED));
        }
        socket.connect(server.at(Family::V4, 15020)).unwrap();
        assert_eq!(socket.peername(), Ok(server.at(Family::V4, 15020)));
        let _sidecar = pod.sidecar();
        let socket = app.tcp(Family::V4);
        socket.connect(second).unwrap();
        assert_eq!(socket.peername(), Ok(second));
        assert_eq!(socket.seen().original_dst, Ok(second));
    });
}
