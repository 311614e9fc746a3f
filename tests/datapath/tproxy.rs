//! `interceptionMode: TPROXY`: the sidecar goes on to the application as its client, without a capability,
//! and the application is told the client.

use std::net::{IpAddr, SocketAddr};

use harness::{
    Capabilities, Errno, Event, Family, Node, Pod, Process, Service, Sidecar, Socket, User, kernel_test,
};

use crate::{any, enrolled, far_away, localhost, mapped, passthrough};

/// `asm-generic/socket.h`; libc has no name for it on every target.
const SO_PEERNAME: i32 = 28;

/// Who a sidecar may be, and what it may be allowed.
pub(crate) const SIDECARS: [(User, Capabilities); 4] = [
    (User::PROXY, Capabilities::OfUser),
    (User::PROXY, Capabilities::Network),
    (User::TPROXY, Capabilities::None),
    (User::TPROXY, Capabilities::OfUser),
];

pub(crate) fn tproxy(node: &Node, name: &str) -> Pod {
    let pod = node.pod(name);
    node.attach(&pod, &["--interception-mode", "TPROXY"]);
    pod
}

/// Makes a socket transparent, as Envoy does.
pub(crate) fn transparent(process: &Process, family: Family) -> Socket {
    let socket = process.tcp(family);
    ask(&socket, family).unwrap();
    socket
}

pub(crate) fn ask(socket: &Socket, family: Family) -> Result<(), Errno> {
    match family {
        Family::V4 => socket.set_option(libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        Family::V6 => socket.set_option(libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// An address and a port of a client that is somewhere else.
pub(crate) fn client(family: Family) -> SocketAddr {
    SocketAddr::new(far_away(family, 0).ip(), 42_333)
}

fn number(socket: &Socket, level: i32, name: i32) -> i32 {
    let value = socket.option(level, name, 4).unwrap();
    i32::from_ne_bytes(value.buffer.try_into().unwrap())
}

#[test]
fn the_application_sees_the_client_of_every_kind_of_sidecar() {
    kernel_test(|node| {
        for (number, (user, capabilities)) in SIDECARS.into_iter().enumerate() {
            let (pod, other) = (tproxy(node, &format!("server{number}")), node.pod("client"));
            let sidecar = Sidecar::builder(&pod).service(Service::Imitate).user(user, capabilities).start();
            let (app, dialer) = (pod.app(), other.app());
            for family in Family::ALL {
                app.serve(&[any(family, 8080)], Service::Tell).unwrap();
                let socket = dialer.connect(pod.at(family, 8080)).unwrap();
                let seen = socket.seen();
                let what = format!("{user:?} with {capabilities:?}: {seen:?}");
                assert_eq!((seen.listener, seen.local), (8080, pod.at(family, 8080)), "{what}");
                assert_eq!(seen.client.ip(), other.ip(family), "{what}");
                // What the sidecar sees is what it sees in the other mode.
                let [by_sidecar] = &sidecar.take_seen()[..] else { panic!("one connection: {what}") };
                assert_eq!((by_sidecar.listener, by_sidecar.client), (15006, socket.sockname()), "{what}");
                assert_eq!(by_sidecar.original_dst, Ok(pod.at(family, 8080)), "{what}");
            }
            assert_eq!(node.count(&pod, Event::HandoffTaken), 2);
            assert_eq!(node.clients(), []);
        }
    });
}

#[test]
fn the_sidecar_keeps_the_clients_port_if_it_wants_to() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            // Two clients with one port, and one whose port is left to the kernel.
            let other = if family == Family::V6 { "2001:db8::11" } else { "192.0.2.11" };
            let second = SocketAddr::new(other.parse().unwrap(), client(family).port());
            let mut sockets = Vec::new();
            for from in [client(family), second, SocketAddr::new(client(family).ip(), 0)] {
                let socket = transparent(&proxy, family);
                socket.bind(from).unwrap();
                socket.connect(pod.at(family, 8080)).unwrap();
                let accepted = listener.accept().unwrap();
                let own = socket.sockname();
                assert_eq!(own.ip(), passthrough(family).ip(), "{from}");
                let port = if from.port() == 0 { own.port() } else { from.port() };
                let expected = SocketAddr::new(from.ip(), port);
                assert_eq!(accepted.peername(), Ok(expected));
                // The kernel wants a buffer that is not larger than the address.
                let size = if family == Family::V6 {
                    size_of::<libc::sockaddr_in6>()
                } else {
                    size_of::<libc::sockaddr_in>()
                };
                let told = accepted.option(libc::SOL_SOCKET, SO_PEERNAME, size as u32).unwrap();
                assert_eq!(harness::protocol::decode_sockaddr(&told.buffer), Some(expected), "SO_PEERNAME");
                assert_eq!(accepted.sockname(), pod.at(family, 8080));
                accepted.send(b"hello").unwrap();
                assert_eq!(socket.receive(5).unwrap().data, b"hello");
                sockets.push((socket, accepted));
            }
        }
    });
}

#[test]
fn ipv4_mapped_sockets_at_either_end() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        let (dual, plain) = (app.tcp(Family::V6), app.listen(any(Family::V4, 8081)).unwrap());
        dual.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0).unwrap();
        dual.bind(any(Family::V6, 8080)).unwrap();
        dual.listen().unwrap();
        let from = client(Family::V4);
        for (family, port, listener, told) in [
            (Family::V4, 8080, &dual, mapped(from)),
            (Family::V6, 8080, &dual, mapped(from)),
            (Family::V6, 8081, &plain, from),
        ] {
            let as_written =
                |address: SocketAddr| if family == Family::V6 { mapped(address) } else { address };
            let socket = transparent(&proxy, family);
            socket.bind(as_written(from)).unwrap();
            socket.connect(as_written(pod.at(Family::V4, port))).unwrap();
            assert_eq!(socket.sockname().ip(), as_written(passthrough(Family::V4)).ip());
            assert_eq!(listener.accept().unwrap().peername(), Ok(told), "{family:?}, port {port}");
        }
    });
}

#[test]
fn only_the_proxy_of_a_tproxy_pod_may_pretend() {
    kernel_test(|node| {
        let (pod, plain) = (tproxy(node, "server"), enrolled(node, "plain"));
        for family in Family::ALL {
            for process in [pod.app(), plain.app(), plain.proxy()] {
                let socket = process.tcp(family);
                assert_eq!(ask(&socket, family), Err(Errno::EPERM));
                assert_eq!(socket.set_option(libc::SOL_SOCKET, libc::SO_MARK, 1337), Err(Errno::EPERM));
                assert_eq!(socket.bind(client(family)), Err(Errno::EADDRNOTAVAIL));
            }
            // Not asked for is not had, taken back neither; datagrams are the kernel's business.
            let proxy = pod.proxy();
            assert_eq!(proxy.tcp(family).bind(client(family)), Err(Errno::EADDRNOTAVAIL));
            let socket = transparent(&proxy, family);
            match family {
                Family::V4 => socket.set_option(libc::SOL_IP, libc::IP_TRANSPARENT, 0).unwrap(),
                Family::V6 => socket.set_option(libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 0).unwrap(),
            }
            assert_eq!(socket.bind(client(family)), Err(Errno::EADDRNOTAVAIL));
            let datagrams = proxy.udp(family);
            assert_eq!(ask(&datagrams, family), Err(Errno::EPERM));
            assert_eq!(datagrams.bind(client(family)), Err(Errno::EADDRNOTAVAIL));
            // A value that is no number is refused as ever.
            let (level, name) = if family == Family::V6 {
                (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
            } else {
                (libc::SOL_IP, libc::IP_TRANSPARENT)
            };
            assert!(proxy.tcp(family).set_option_bytes(level, name, &[]).is_err());
            for short in [&[][..], &[1; 3]] {
                let marked = proxy.tcp(family).set_option_bytes(libc::SOL_SOCKET, libc::SO_MARK, short);
                assert_eq!(marked, Err(Errno::EINVAL), "a mark has four bytes");
            }
            // With a real capability an application binds to what it likes, as ever.
            let root = pod.process_with("app", User { uid: 2000, gid: 2000 }, Capabilities::Network);
            let socket = transparent(&root, family);
            socket.bind(client(family)).unwrap();
            assert_eq!(socket.sockname(), client(family));
        }
    });
}

#[test]
fn a_capability_of_the_sidecar_changes_nothing() {
    kernel_test(|node| {
        for (number_of, (user, capabilities)) in SIDECARS.into_iter().enumerate() {
            let pod = tproxy(node, &format!("server{number_of}"));
            let proxy = pod.process_with("istio-proxy", user, capabilities);
            for family in Family::ALL {
                let socket = transparent(&proxy, family);
                socket.set_option(libc::SOL_SOCKET, libc::SO_MARK, 1337).unwrap();
                assert_eq!(number(&socket, libc::SOL_SOCKET, libc::SO_MARK), 0, "{user:?} {capabilities:?}");
                socket.bind(client(family)).unwrap();
                let own = socket.sockname();
                assert_eq!(
                    (own.ip(), own.port()),
                    (passthrough(family).ip(), 0),
                    "{user:?} {capabilities:?}"
                );
            }
        }
    });
}

#[test]
fn what_may_not_be_pretended_is_left_to_the_kernel() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let proxy = pod.proxy();
        let addresses =
            |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
        let own = [pod.ip(Family::V4), pod.ip(Family::V6)];
        let bound = addresses(&["127.0.0.1", "127.0.0.9", "0.0.0.0", "::1", "::", "::6"]);
        for ip in bound.into_iter().chain(own) {
            let socket = transparent(&proxy, Family::of(&ip));
            socket.bind(SocketAddr::new(ip, 4000)).unwrap();
            assert_eq!(socket.sockname(), SocketAddr::new(ip, 4000), "{ip}");
        }
        for ip in addresses(&["fd72:6564:6972::7", "ff02::1"]) {
            let socket = transparent(&proxy, Family::of(&ip));
            assert!(socket.bind(SocketAddr::new(ip, 4000)).is_err(), "{ip}");
        }
        for ip in addresses(&["224.0.0.1", "255.255.255.255"]) {
            // The kernel binds to these; nothing of it becomes 127.0.0.6.
            let socket = transparent(&proxy, Family::V4);
            let _ = socket.bind(SocketAddr::new(ip, 4000));
            assert_ne!(socket.sockname().ip(), passthrough(Family::V4).ip(), "{ip}");
        }
    });
}

#[test]
fn self_calls_go_to_the_sidecar_once() {
    kernel_test(|node| {
        for (number, (user, capabilities)) in SIDECARS.into_iter().enumerate() {
            let pod = tproxy(node, &format!("server{number}"));
            let _sidecar = Sidecar::builder(&pod).service(Service::Imitate).user(user, capabilities).start();
            let (app, proxy) = (pod.app(), pod.process_with("istio-proxy", user, capabilities));
            for family in Family::ALL {
                app.serve(&[any(family, 8080)], Service::Tell).unwrap();
                // The proxy has chosen its own pod: in by the inbound listener, which goes on to the
                // application as the pod itself.
                let socket = proxy.connect(pod.at(family, 8080)).unwrap();
                let seen = socket.seen();
                assert_eq!((seen.listener, seen.client.ip()), (8080, pod.ip(family)), "{user:?}: {seen:?}");
                // The application to itself: directly.
                let socket = app.connect(pod.at(family, 8080)).unwrap();
                assert_eq!(socket.seen().client, socket.sockname());
            }
            assert_eq!(node.count(&pod, Event::SelfCallRedirected), 2, "{user:?}");
        }
    });
}

#[test]
fn a_client_is_told_with_tcp_fast_open() {
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        // Both sides, without cookies, for every listener: the application's side is established first.
        pod.netns().sysctl("net/ipv4/tcp_fastopen", "1543");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            for _ in 0..3 {
                let socket = transparent(&proxy, family);
                socket.set_option(libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1).unwrap();
                socket.bind(client(family)).unwrap();
                socket.connect(pod.at(family, 8080)).unwrap();
                socket.send(b"in the SYN").unwrap();
                let accepted = listener.accept().unwrap();
                assert_eq!(accepted.peername(), Ok(client(family)));
                assert_eq!(accepted.receive(100).unwrap().data, b"in the SYN");
            }
        }
        let counted = pod.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
        let lines: Vec<Vec<&str>> = counted.lines().map(|line| line.split(' ').collect()).collect();
        let at = lines[0].iter().position(|name| *name == "TCPFastOpenPassive").unwrap();
        assert_eq!(lines[1][at], "6", "the data came in the SYN");
        assert_eq!(node.clients(), []);
    });
}

/// A socket of the proxy that was refused at first, and again dialled with when the application was there;
/// the application's listener with it. Nothing is kept of the client each time.
pub(crate) fn refused_at_first(
    node: &Node,
    pod: &Pod,
    app: &Process,
    proxy: &Process,
    family: Family,
) -> (Socket, Socket) {
    let socket = transparent(proxy, family);
    socket.bind(client(family)).unwrap();
    assert_eq!(socket.connect(pod.at(family, 8080)), Err(Errno::ECONNREFUSED));
    assert_eq!(node.clients(), []);
    // The same socket again, now that the application is there.
    let listener = app.listen(any(family, 8080)).unwrap();
    socket.connect(pod.at(family, 8080)).unwrap();
    assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)));
    assert_eq!(node.clients(), []);
    (socket, listener)
}

#[test]
fn nothing_is_kept_of_a_client_that_was_refused() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            refused_at_first(node, &pod, &app, &proxy, family);
        }
    });
}

#[test]
fn a_client_is_shown_where_the_port_is_excluded_and_on_localhost() {
    kernel_test(|node| {
        let pod = node.pod("server");
        node.attach(&pod, &["--interception-mode", "TPROXY", "--exclude-outbound-ports", "8080"]);
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            // An address of 127/8 is a source for 127.0.0.1; `::6` is none for `::1` and reaches it all the
            // same.
            for to in [pod.at(family, 8080), localhost(family, 8080)] {
                let socket = transparent(&proxy, family);
                socket.bind(client(family)).unwrap();
                socket.connect(to).unwrap();
                let accepted = listener.accept().unwrap();
                assert_eq!(accepted.peername(), Ok(client(family)), "{to}");
                assert!(accepted.original_dst(harness::Level::Ip).is_err(), "{to}");
                assert!(accepted.original_dst(harness::Level::Ipv6).is_err(), "{to}");
            }
        }
    });
}

#[test]
fn towards_others_the_proxy_cannot_pretend() {
    kernel_test(|node| {
        let (pod, other) = (tproxy(node, "server"), node.pod("other"));
        let (proxy, server) = (pod.proxy(), other.app());
        for family in Family::ALL {
            let listener = server.listen(any(family, 8080)).unwrap();
            let socket = proxy.tcp_nonblocking(family);
            ask(&socket, family).unwrap();
            socket.bind(client(family)).unwrap();
            // From 127.0.0.6 there is no way out; an answer to `::6` would not find its way back.
            let expected = if family == Family::V6 { Errno::EINPROGRESS } else { Errno::EINVAL };
            assert_eq!(socket.connect(other.at(family, 8080)), Err(expected));
            assert_eq!(listener.accept().map(drop), Err(Errno::EAGAIN), "nothing arrived");
            assert_eq!(node.clients().len(), usize::from(family == Family::V6));
            drop(socket);
            assert_eq!(node.clients(), []);
        }
    });
}

#[test]
fn the_rest_is_as_in_redirect_mode() {
    kernel_test(|node| {
        let (pod, other) = (tproxy(node, "server"), node.pod("client"));
        let (app, dialer) = (pod.app(), other.app());
        for family in Family::ALL {
            // Without a sidecar all is closed.
            assert_eq!(dialer.connect(pod.at(family, 8080)).map(drop), Err(Errno::ECONNREFUSED));
            assert_eq!(app.connect(far_away(family, 80)).map(drop), Err(Errno::ECONNREFUSED));
        }
        let _sidecar = pod.sidecar();
        for family in Family::ALL {
            // Probes' ports are the sidecar's own; HBONE is no exception in this mode.
            app.serve(&[any(family, 15020), any(family, 15021), any(family, 15008)], Service::Tell).unwrap();
            for (port, listener) in [(15020, 15020), (15021, 15021), (15008, 15006), (8080, 15006)] {
                assert_eq!(dialer.connect(pod.at(family, port)).unwrap().seen().listener, listener, "{port}");
            }
            let socket = app.connect(far_away(family, 80)).unwrap();
            let seen = socket.seen();
            assert_eq!((seen.listener, seen.original_dst), (15001, Ok(far_away(family, 80))));
            assert_eq!(socket.peername(), Ok(far_away(family, 80)));
            // A sidecar that binds 127.0.0.6 itself shows it.
            let probe = pod.proxy().tcp(family);
            probe.bind(passthrough(family)).unwrap();
            probe.connect(pod.at(family, 15020)).unwrap();
            assert_eq!(probe.seen().client, probe.sockname());
        }
    });
}

#[test]
fn only_pods_in_this_mode_have_its_hooks() {
    kernel_test(|node| {
        let hooks = |pod: &Pod| -> Vec<String> {
            let shown = node.json(&["show", pod.name()]);
            let links = shown[0]["links"].as_array().unwrap().iter();
            links.map(|link| link["hook"].as_str().unwrap().to_owned()).collect()
        };
        let (with, without) = (tproxy(node, "with"), enrolled(node, "without"));
        for hook in ["handover", "transparent"] {
            assert!(hooks(&with).iter().any(|name| name == hook), "{hook}");
            assert!(!hooks(&without).iter().any(|name| name == hook), "{hook}");
        }
    });
}
