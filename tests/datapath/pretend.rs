//! TPROXY mode, what goes wrong: calls of the sidecar that fail or come twice, an application that does not
//! accept, and sockets of other kinds.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use harness::{Errno, Event, Family, Level, Pod, Process, Service, Sidecar, Socket, User, kernel_test};
use redirect_common::{CLIENTS_PER_POD, Claims};

use crate::tproxy::{SIDECARS, ask, client, tproxy, transparent};
use crate::{any, crowded, mapped, passthrough};

/// Another client, with the same port.
fn second(family: Family) -> SocketAddr {
    let ip = if family == Family::V6 { "2001:db8::11" } else { "192.0.2.11" };
    SocketAddr::new(ip.parse().unwrap(), client(family).port())
}

/// A listener that gets no connection before there is data: what dials it is established, and its kernel has
/// no socket for it. So it is with a backlog that is full.
pub(crate) fn deferring(process: &Process, family: Family, port: u16) -> Socket {
    let socket = of_one_family(process, family);
    socket.set_option(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30).unwrap();
    socket.bind(any(family, port)).unwrap();
    socket.listen().unwrap();
    socket
}

/// A socket that leaves its port to one of the other family.
pub(crate) fn of_one_family(process: &Process, family: Family) -> Socket {
    let socket = process.tcp(family);
    if family == Family::V6 {
        socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
    }
    socket
}

/// A socket of the sidecar on its way to the application.
pub(crate) fn pretender(proxy: &Process, pod: &Pod, from: SocketAddr) -> Result<Socket, Errno> {
    let socket = transparent(proxy, Family::of(&from.ip()));
    socket.bind(from)?;
    socket.connect(pod.at(Family::of(&from.ip()), 8080))?;
    Ok(socket)
}

#[test]
fn clients_that_wait_for_the_application_take_no_room_from_the_detour() {
    kernel_test(|node| {
        let (pod, other) = (tproxy(node, "busy"), tproxy(node, "other"));
        let (app, proxy) = (pod.app(), pod.proxy());
        let neighbour = other.app();
        for family in Family::ALL {
            let listener = deferring(&app, family, 8080);
            let waiting: Vec<_> = (0..5).map(|_| pretender(&proxy, &pod, client(family)).unwrap()).collect();
            assert_eq!((node.handshakes(), node.claims(&pod).handshakes), (vec![], 0));
            assert_eq!((node.clients().len(), node.claims(&pod).clients), (5, 5));
            // The pod has its share: the sidecar is told at once, and nothing is sent in a client's name.
            node.set_claims(&pod, Claims { clients: CLIENTS_PER_POD, ..node.claims(&pod) });
            let refused = pretender(&proxy, &pod, client(family)).map(drop);
            assert_eq!(refused, Err(Errno::ECONNREFUSED));
            assert_eq!(node.count(&pod, Event::ClientRefused), 1 + u64::from(family == Family::V6));
            assert_eq!(node.clients().len(), 5);
            // Who does not pretend, and another pod, are not concerned.
            let plain = proxy.tcp(family);
            plain.bind(passthrough(family)).unwrap();
            plain.connect(pod.at(family, 8080)).unwrap();
            let beside = neighbour.listen(any(family, 8080)).unwrap();
            let _socket = pretender(&other.proxy(), &other, client(family)).unwrap();
            assert_eq!(beside.accept().unwrap().peername(), Ok(client(family)));
            // With the first of them taken there is room again.
            node.set_claims(&pod, Claims { clients: 5, ..node.claims(&pod) });
            for socket in &waiting {
                socket.send(b"now").unwrap();
                assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)));
            }
            assert_eq!((node.clients(), node.claims(&pod).clients), (vec![], 0));
        }
        assert_eq!(node.count(&pod, Event::HandoffFull), 0);
    });
}

#[test]
fn the_detour_goes_on_where_clients_have_taken_their_share() {
    kernel_test(|node| {
        let pod = tproxy(node, "busy");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            let all = crowded(family);
            for to in &all[..all.len() - 1] {
                drop(app.connect(*to).unwrap());
            }
            node.set_claims(&pod, Claims { clients: 2 * CLIENTS_PER_POD, ..node.claims(&pod) });
            let detour = all[all.len() - 1];
            assert_eq!(app.connect(detour).unwrap().seen().original_dst, Ok(detour));
        }
        assert_eq!(node.count(&pod, Event::HandoffFull), 0);
    });
}

#[test]
fn clients_that_wait_are_forgotten_with_the_socket_and_with_the_pod() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        let _listeners = Family::ALL.map(|family| deferring(&app, family, 8080));
        for family in Family::ALL {
            let socket = pretender(&proxy, &pod, client(family)).unwrap();
            // Said again, it changes nothing.
            ask(&socket, family).unwrap();
            drop(socket);
            assert_eq!((node.handshakes(), node.clients()), (vec![], vec![]), "closed, {family:?}");
        }
        let _waiting = Family::ALL.map(|family| pretender(&proxy, &pod, client(family)).unwrap());
        node.detach(&pod);
        assert_eq!((node.handshakes(), node.clients()), (vec![], vec![]), "detached");
    });
}

#[test]
fn a_bind_that_fails_leaves_the_client_as_it_is() {
    /// `linux/in.h`
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            let socket = transparent(&proxy, family);
            socket.set_option(libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 0).unwrap();
            socket.bind(client(family)).unwrap();
            assert_eq!(socket.bind(second(family)), Err(Errno::EINVAL), "it has a port");
            socket.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(socket.bind(second(family)), Err(Errno::EINVAL), "it has a connection");
            assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)));
            // A call that succeeds counts, as it does without us: the last one.
            let socket = transparent(&proxy, family);
            socket.bind(client(family)).unwrap();
            socket.bind(second(family)).unwrap();
            socket.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(listener.accept().unwrap().peername(), Ok(second(family)));
            // Also one that pretends nothing any more.
            let socket = transparent(&proxy, family);
            socket.bind(client(family)).unwrap();
            socket.bind(passthrough(family)).unwrap();
            socket.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(listener.accept().unwrap().peername(), Ok(socket.sockname()));
        }
        // The first call fails for a reason of the kernel's: nothing is pretended.
        let listener = app.listen(any(Family::V6, 8081)).unwrap();
        let socket = transparent(&proxy, Family::V6);
        socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
        assert_eq!(socket.bind(mapped(client(Family::V4))), Err(Errno::EINVAL));
        socket.connect(pod.at(Family::V6, 8081)).unwrap();
        assert_eq!(listener.accept().unwrap().peername(), Ok(socket.sockname()));
    });
}

#[test]
fn an_option_said_twice_changes_nothing() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            let socket = transparent(&proxy, family);
            ask(&socket, family).unwrap();
            socket.bind(client(family)).unwrap();
            ask(&socket, family).unwrap();
            socket.connect(pod.at(family, 8080)).unwrap();
            ask(&socket, family).unwrap();
            assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)));
            // The application's socket too, if the proxy has it; the proxy's own listeners as well.
            let listener = proxy.listen(any(family, 8082)).unwrap();
            ask(&listener, family).unwrap();
            let socket = transparent(&proxy, family);
            socket.bind(client(family)).unwrap();
            socket.connect(pod.at(family, 8082)).unwrap();
            let accepted = listener.accept().unwrap();
            ask(&accepted, family).unwrap();
            assert_eq!(accepted.peername(), Ok(client(family)));
        }
    });
}

#[test]
fn an_accepted_connection_keeps_its_original_destination() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = of_one_family(&proxy, family);
            ask(&listener, family).unwrap();
            listener.bind(any(family, 15001)).unwrap();
            listener.listen().unwrap();
            let (level, all) = (if family == Family::V6 { Level::Ipv6 } else { Level::Ip }, crowded(family));
            // The last has no slot and takes the detour: its destination is kept in the socket.
            for to in all {
                let _socket = app.connect(to).unwrap();
                let accepted = listener.accept().unwrap();
                ask(&accepted, family).unwrap();
                assert_eq!(accepted.original_dst(level), Ok(to));
            }
            assert_eq!(node.handshakes(), []);
        }
    });
}

#[test]
fn an_mptcp_socket_of_the_proxy_is_refused() {
    kernel_test(|node| {
        for (number, (user, capabilities)) in SIDECARS.into_iter().enumerate() {
            let pod = tproxy(node, &format!("server{number}"));
            let proxy = pod.process_with("istio-proxy", user, capabilities);
            for family in Family::ALL {
                let socket = proxy.mptcp(family).unwrap();
                assert_eq!(ask(&socket, family), Err(Errno::EOPNOTSUPP), "{user:?} with {capabilities:?}");
                assert_eq!(socket.set_option(libc::SOL_SOCKET, libc::SO_MARK, 1337), Ok(()));
                assert_eq!(socket.bind(client(family)), Err(Errno::EADDRNOTAVAIL));
            }
        }
    });
}

#[test]
fn an_application_with_mptcp_listeners_sees_its_client() {
    // As Go's are by default since 1.24.
    kernel_test(|node| {
        let (pod, other) = (tproxy(node, "server"), node.pod("client"));
        let _sidecar = Sidecar::builder(&pod).service(Service::Imitate).start();
        let app = pod.app();
        for family in Family::ALL {
            let listener = app.mptcp(family).unwrap();
            listener.bind(any(family, 8080)).unwrap();
            listener.listen().unwrap();
            for dialer in [other.app().tcp(family), other.app().mptcp(family).unwrap()] {
                dialer.connect(pod.at(family, 8080)).unwrap();
                let accepted = listener.accept().unwrap();
                assert_eq!(accepted.peername().map(|peer| peer.ip()), Ok(other.ip(family)));
                assert_eq!(accepted.sockname(), pod.at(family, 8080));
            }
        }
    });
}

#[test]
fn a_link_local_client() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        let listener = app.listen(any(Family::V6, 8080)).unwrap();
        let ip: Ipv6Addr = "fe80::99".parse().unwrap();
        for scope in [0, 2] {
            let socket = pretender(&proxy, &pod, SocketAddrV6::new(ip, 4000, 0, scope).into()).unwrap();
            // Named without its interface: the application's socket is not bound to one.
            let named = SocketAddrV6::new(ip, 4000, 0, 0).into();
            assert_eq!(listener.accept().unwrap().peername(), Ok(named), "scope {scope}");
            drop(socket);
        }
    });
}

#[test]
fn an_application_that_is_transparent_itself() {
    kernel_test(|node| {
        let (pod, other) = (tproxy(node, "server"), node.pod("client"));
        let _sidecar = Sidecar::builder(&pod).service(Service::Imitate).start();
        let root = pod.process_with("app", User { uid: 2000, gid: 2000 }, harness::Capabilities::Network);
        pod.netns().ip("route add local 192.0.2.77/32 dev lo\nroute add local 2001:db8::77/128 dev lo");
        for family in Family::ALL {
            let (four, six) = ("192.0.2.77:8080", "[2001:db8::77]:8080");
            let at: SocketAddr = if family == Family::V6 { six } else { four }.parse().unwrap();
            other.netns().ip(&format!("route add {} via {}", at.ip(), pod.ip(family)));
            let listener = transparent(&root, family);
            listener.bind(at).unwrap();
            listener.listen().unwrap();
            let socket = other.app().connect(at).unwrap();
            let accepted = listener.accept().unwrap();
            assert_eq!(accepted.peername().map(|peer| peer.ip()), Ok(socket.sockname().ip()));
            assert_eq!(accepted.sockname(), at);
        }
    });
}
