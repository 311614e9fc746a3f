//! What people reported elsewhere about redirection, tried here: ports that accepted connections occupy,
//! listeners that come and go, sockets that only look like the sidecar's, addresses that only look like ours.

use std::net::{IpAddr, SocketAddr};

use harness::{Errno, Event, Service, Sidecar, User, kernel_test};
use redirect_common::Family;

use crate::pretend::deferring;
use crate::{any, crowded, enrolled, far_away, localhost, mapped};

#[test]
fn an_application_binds_its_port_while_the_sidecar_holds_connections_on_it() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let _sidecar = pod.sidecar();
        let (client, app) = (other.app(), pod.app());
        for family in Family::ALL {
            // A client is there before the application is.
            let connection = client.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(connection.seen().listener, 15006);
            let socket = app.tcp(family);
            assert_eq!(socket.bind(any(family, 8080)), Ok(()));
            socket.listen().unwrap();
            // A second listener is refused as ever.
            let second = app.tcp(family);
            let refused = second.bind(any(family, 8080)).and_then(|()| second.listen());
            assert_eq!(refused, Err(Errno::EADDRINUSE));
            drop(socket);
        }
    });
}

#[test]
fn a_scan_of_the_ephemeral_range_takes_no_port_from_the_pod() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        pod.netns().sysctl("net/ipv4/ip_local_port_range", "40000 40031");
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        let (client, app) = (other.app(), pod.app());
        for family in Family::ALL {
            for port in 40000..=40031 {
                assert_eq!(client.connect(pod.at(family, port)).map(drop), Err(Errno::ECONNREFUSED));
            }
            // What an application listens on is the sidecar's as before, and is not when it ends.
            let listener = app.listen(any(family, 40007)).unwrap();
            assert_eq!(client.connect(pod.at(family, 40007)).unwrap().seen().listener, 15006);
            drop(listener);
            assert_eq!(client.connect(pod.at(family, 40007)).map(drop), Err(Errno::ECONNREFUSED));
            assert_eq!(app.connect(far_away(family, 80)).unwrap().seen().listener, 15001);
        }
        assert_eq!(node.count(&pod, Event::InboundNoSocket), 66);
        assert_eq!(node.count(&pod, Event::InboundRefused), 0);
    });
}

#[test]
fn ephemeral_ports_that_are_listed_or_were_listened_on_before() {
    kernel_test(|node| {
        let (listed, running, other) = (node.pod("listed"), node.pod("running"), node.pod("other"));
        node.attach(&listed, &["--include-inbound-ports", "40001"]);
        let early = running.app();
        let _listener = early.listen(any(Family::V4, 40001)).unwrap();
        node.attach(&running, &[]);
        for pod in [&listed, &running] {
            let _sidecar = pod.sidecar();
            assert_eq!(other.app().connect(pod.at(Family::V4, 40001)).unwrap().seen().listener, 15006);
        }
    });
}

#[test]
fn many_workers_and_a_sidecar_that_is_replaced() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let (client, app) = (other.app(), pod.app());
        let works = |what: &str| {
            for family in Family::ALL {
                let inbound = client.connect(pod.at(family, 8080)).map(|socket| socket.seen().listener);
                assert_eq!(inbound, Ok(15006), "inbound, {what}");
                let outbound = app.connect(far_away(family, 80)).map(|socket| socket.seen().listener);
                assert_eq!(outbound, Ok(15001), "outbound, {what}");
            }
        };
        let old = Sidecar::builder(&pod).workers(20).start();
        works("20 workers");
        let mut new = Sidecar::builder(&pod).workers(2).start();
        works("two generations");
        drop(old);
        works("the old one gone");
        new.stop_worker();
        works("one worker left");
        assert_eq!(node.count(&pod, Event::ListenerRejected), 0);
    });
}

#[test]
fn an_ipv6_only_sidecar_does_not_serve_ipv4() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let proxy = pod.proxy();
        let listeners = [15001, 15006].map(|port| {
            let socket = proxy.tcp(Family::V6);
            socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
            socket.bind(any(Family::V6, port)).unwrap();
            socket.listen().unwrap();
            socket
        });
        let app = pod.app();
        assert_eq!(app.connect(far_away(Family::V4, 80)).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(app.connect(mapped(far_away(Family::V4, 80))).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(other.app().connect(pod.at(Family::V4, 8080)).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(node.count(&pod, Event::NoListener), 2);
        app.connect(far_away(Family::V6, 80)).unwrap();
        drop(listeners);
    });
}

#[test]
fn no_application_may_bind_to_the_sidecars_ports() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        // The pod's root is not the proxy either, and has the uid of a sidecar that may do more than others.
        for (index, user) in [User::APP, User::ROOT].into_iter().enumerate() {
            let thief = pod.process(&format!("thief{index}"), user);
            for family in Family::ALL {
                let slot = redirect_common::slot_address(
                    7,
                    if family == Family::V6 { Family::V6 } else { Family::V4 },
                );
                let wildcard =
                    if family == Family::V6 { any(Family::V6, 0).ip() } else { IpAddr::from([0, 0, 0, 0]) };
                for (ip, port) in [(wildcard, 15001), (wildcard, 15006), (IpAddr::from(slot), 15001)] {
                    let socket = thief.tcp(family);
                    socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
                    assert_eq!(socket.bind(SocketAddr::new(ip, port)), Err(Errno::EADDRINUSE), "{ip} {port}");
                }
            }
        }
        assert_eq!(node.count(&pod, Event::ListenerForeign), 12);
        let _sidecar = pod.sidecar();
        assert_eq!(pod.app().connect(far_away(Family::V4, 80)).unwrap().seen().listener, 15001);
    });
}

#[test]
fn what_listens_on_the_sidecars_ports_before_attach_and_is_not_the_proxys_gets_nothing() {
    kernel_test(|node| {
        let (pod, early, other) = (node.pod("pod"), node.pod("early"), node.pod("other"));
        let (thief, client) = (pod.process("thief", User::APP), other.app());
        let _sidecar = early.sidecar();
        node.attach(&early, &[]);
        for family in Family::ALL {
            assert_eq!(client.connect(early.at(family, 8080)).unwrap().seen().listener, 15006);
        }
        let listeners = [15001, 15006].map(|port| thief.listen(any(Family::V6, port)).unwrap());
        for repeated in [false, true] {
            node.attach(&pod, &[]);
            for family in Family::ALL {
                let (out, inward) =
                    (pod.app().connect(far_away(family, 80)), client.connect(pod.at(family, 8080)));
                assert_eq!(out.map(drop), Err(Errno::ECONNREFUSED), "{family:?} {repeated}");
                assert_eq!(inward.map(drop), Err(Errno::ECONNREFUSED), "{family:?} {repeated}");
            }
        }
        drop(listeners);
        let _sidecar = pod.sidecar();
        assert_eq!(client.connect(pod.at(Family::V4, 8080)).unwrap().seen().listener, 15006);
    });
}

#[test]
fn what_listens_on_the_dns_proxys_port_before_attach_and_is_not_the_proxys_gets_nothing() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let (thief, app) = (pod.process("thief", User::APP), pod.app());
        let stolen = thief.listen(any(Family::V6, 15053)).unwrap();
        for repeated in [false, true] {
            node.attach(&pod, &["--dns-capture"]);
            for family in Family::ALL {
                let asked = app.connect(far_away(family, 53)).map(drop);
                assert_eq!(asked, Err(Errno::ECONNREFUSED), "{family:?} {repeated}");
            }
        }
        drop(stolen);
        let _dns = harness::DnsProxy::start(&pod);
        app.connect(far_away(Family::V4, 53)).unwrap();
    });
}

#[test]
fn the_dns_proxys_listener_from_before_attach_needs_no_detour() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let (_dns, app) = (harness::DnsProxy::start(&pod), pod.app());
        node.attach(&pod, &["--dns-capture"]);
        for family in Family::ALL {
            app.connect(far_away(family, 53)).unwrap();
        }
        assert_eq!((node.count(&pod, Event::DnsRedirected), node.count(&pod, Event::HandoffTaken)), (2, 0));
    });
}

#[test]
fn a_family_that_the_pod_does_not_have_is_unreachable() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        pod.netns().ip(&format!("addr del {}/64 dev eth0", pod.ip6()));
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        let app = pod.app();
        assert_eq!(app.connect(far_away(Family::V6, 443)).map(drop), Err(Errno::ENETUNREACH));
        assert_eq!(app.connect(far_away(Family::V4, 443)).unwrap().seen().listener, 15001);
        assert_eq!(node.count(&pod, Event::Unreachable), 1);
    });
}

#[test]
fn an_applications_own_server_in_the_prefix_keeps_its_names() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // The destination's slot is taken; its address has other ports.
        let to = far_away(Family::V4, 80);
        app.connect(to).unwrap();
        let slot = redirect_common::slot_of(&to.into(), 0);
        let ip = redirect_common::slot_address(slot, redirect_common::Family::V4);
        let own = SocketAddr::new(ip.into(), 8080);
        app.serve(&[own], Service::Tell).unwrap();
        let socket = app.connect(own).unwrap();
        assert_eq!(socket.peername(), Ok(own));
        let seen = socket.seen();
        assert_eq!((seen.listener, seen.local), (8080, own));
        assert!(seen.original_dst.is_err(), "{seen:?}");
        // The sidecar's port in the prefix is no destination: the call is left as it is.
        let direct = SocketAddr::new(ip.into(), 15001);
        assert_eq!(app.connect(direct).unwrap().peername(), Ok(to));
        let before = node.count(&pod, Event::OutboundRedirected);
        let family = redirect_common::slot_address(7, redirect_common::Family::V6);
        drop(app.connect(SocketAddr::new(family.into(), 15001)));
        assert_eq!(node.count(&pod, Event::OutboundRedirected), before);
    });
}

#[test]
fn a_neighbour_does_not_reach_the_prefix_by_route_localnet() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let sidecar = pod.sidecar();
        let app = pod.app();
        app.connect(far_away(Family::V4, 80)).unwrap();
        drop(sidecar.take_seen());
        for pod in [&pod, &other] {
            pod.netns().sysctl("net/ipv4/conf/all/route_localnet", "1");
            pod.netns().sysctl("net/ipv4/conf/eth0/route_localnet", "1");
        }
        let slot = redirect_common::slot_of(&far_away(Family::V4, 80).into(), 0);
        let ip = redirect_common::slot_address(slot, redirect_common::Family::V4);
        // In the neighbour the address is not local, but one behind the pod.
        let to = std::net::IpAddr::from(ip);
        other.netns().ip("route del local 127.0.0.0/8 table local");
        other.netns().ip(&format!("route add {to}/32 via {}", pod.ip(Family::V4)));
        let socket = other.app().tcp_nonblocking(Family::V4);
        socket.bind(other.at(Family::V4, 0)).unwrap();
        assert_eq!(socket.connect(SocketAddr::new(to, 15001)), Err(Errno::EINPROGRESS));
        assert_eq!(socket.await_connect(), Err(Errno::ECONNREFUSED));
        assert_eq!(sidecar.take_seen(), []);
        assert_eq!(node.count(&pod, Event::InboundForeign), 1);
    });
}

#[test]
fn a_buffer_shorter_than_the_kernels_answer() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        // Options whose answer is longer than the buffer are cut by the kernel, not refused.
        let [mine, theirs] = [&ours, &plain].map(|pod| {
            let (app, family) = (pod.app(), Family::V4);
            let socket = app.tcp(family);
            [0, 1, 4, 8].map(|size| {
                [
                    socket.option(libc::IPPROTO_TCP, libc::TCP_CONGESTION, size),
                    socket.option(libc::SOL_SOCKET, libc::SO_LINGER, size),
                    socket.option(libc::IPPROTO_TCP, libc::TCP_INFO, size),
                ]
            })
        });
        assert_eq!(mine, theirs);
    });
}

#[test]
fn a_bound_port_and_a_sidecar_on_localhost_keep_the_clients_address() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = Sidecar::builder(&pod).localhost().start();
        let app = pod.app();
        for (family, port) in [(Family::V4, 30_001), (Family::V6, 30_002)] {
            let socket = app.tcp(family);
            socket.bind(any(family, port)).unwrap();
            socket.connect(far_away(family, 80)).unwrap();
            let seen = socket.seen();
            assert_eq!(seen.original_dst, Ok(far_away(family, 80)));
            assert_eq!(seen.client, pod.at(family, port));
        }
    });
}

/// Connection tracking says the same of every connection that it knows.
#[test]
fn the_sidecar_learns_its_own_address_where_nothing_was_redirected() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            let seen = app.connect(pod.at(family, 15006)).unwrap().seen();
            assert_eq!((seen.listener, seen.original_dst), (15006, Ok(pod.at(family, 15006))));
            let seen = app.connect(localhost(family, 15006)).unwrap().seen();
            assert!(seen.original_dst.is_err(), "{seen:?}");
        }
        assert_eq!(node.count(&pod, Event::HandoffMissing), 2);
    });
}

#[test]
fn detach_leaves_no_handshake() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let (app, proxy) = (pod.app(), pod.proxy());
        let _listener = deferring(&proxy, Family::V4, 15001);
        assert_eq!(app.open_many(&crowded(Family::V4), 8).error, None);
        assert_eq!(node.handshakes().len(), 2);
        node.detach(&pod);
        assert_eq!(node.handshakes(), []);
    });
}

/// The table of destinations says for how many there was a slot.
#[test]
fn five_thousand_destinations_have_slots() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        let destinations: Vec<_> =
            (0..5000_u32).map(|n| SocketAddr::from(((0xc612_0000 + n).to_be_bytes(), 80))).collect();
        for some in destinations.chunks(500) {
            assert_eq!(app.open_many(some, some.len()).error, None);
            app.close_many();
        }
        assert_eq!(node.count(&pod, Event::OutboundRedirected), 5000);
        assert!(node.count(&pod, Event::HandoffTaken) <= 5, "{}", node.count(&pod, Event::HandoffTaken));
    });
}
