//! DNS capture: in all ways that a resolver asks, the proxy answers, and the resolver sees the server that it
//! asked.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::dns::ask;
use harness::{DnsProxy, Errno, Event, Family, Node, Pod, User, kernel_test};

use crate::server::{ANSWER, DnsServer, answers, question};
use crate::{in_pod, output};

fn captured(node: &Node) -> Pod {
    let pod = node.pod("client");
    node.attach(&pod, &["--dns-capture"]);
    pod
}

fn server(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Addresses without an owner: an answer can only come from the proxy.
const SERVERS4: [&str; 3] = ["10.96.0.10:53", "192.0.2.53:53", "198.51.100.53:53"];
const SERVERS6: [&str; 2] = ["[2001:db8::53]:53", "[2001:db8::54]:53"];

#[test]
fn unconnected_datagrams_to_several_servers_on_one_socket() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        let app = pod.app();
        for (family, servers) in [(Family::V4, &SERVERS4[..]), (Family::V6, &SERVERS6[..])] {
            let socket = app.udp(family);
            for (id, to) in servers.iter().enumerate() {
                socket.send_to(&question(id as u16), server(to)).unwrap();
            }
            for (id, from) in servers.iter().enumerate() {
                let datagram = socket.receive(512).unwrap();
                assert!(answers(&datagram.data, id as u16), "{datagram:?}");
                assert_eq!(datagram.from, Some(server(from)));
            }
            // One after the other as well.
            for to in servers {
                socket.send_to(&question(9), server(to)).unwrap();
                assert_eq!(socket.receive(512).unwrap().from, Some(server(to)));
            }
            assert_eq!(proxy.take_questions().len(), 2 * servers.len());
        }
        assert_eq!(node.count(&pod, Event::DnsRedirected), 10);
    });
}

#[test]
fn a_dual_stack_socket_asks_servers_of_both_families() {
    kernel_test(|node| {
        let pod = captured(node);
        let _proxy = DnsProxy::start(&pod);
        let socket = pod.app().udp(Family::V6);
        for to in ["[::ffff:192.0.2.53]:53", "[2001:db8::53]:53", "[::ffff:192.0.2.54]:53"] {
            socket.send_to(&question(1), server(to)).unwrap();
            assert_eq!(socket.receive(512).unwrap().from, Some(server(to)));
        }
    });
}

#[test]
fn a_connected_socket_believes_it_is_connected_to_its_server() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        let app = pod.app();
        for to in [SERVERS4[0], SERVERS6[0]].map(server) {
            let socket = app.udp(Family::of(&to.ip()));
            socket.connect(to).unwrap();
            assert_eq!(socket.peername(), Ok(to));
            assert_eq!(socket.sockname().ip(), pod.ip(Family::of(&to.ip())));
            socket.send(&question(3)).unwrap();
            let datagram = socket.receive(512).unwrap();
            assert!(answers(&datagram.data, 3));
            assert_eq!(datagram.from, Some(to));
            // The socket can be used for something else afterwards.
            let elsewhere = crate::server::answer(&question(0)).len() as u16;
            let gateway = SocketAddr::new(pod.ip(Family::of(&to.ip())), 1000 + elsewhere);
            socket.connect(gateway).unwrap();
            assert_eq!(socket.peername(), Ok(gateway));
        }
        assert_eq!(proxy.take_questions().len(), 2);
    });
}

#[test]
fn dns_over_tcp() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        let app = pod.app();
        for to in [SERVERS4[0], SERVERS6[0]].map(server) {
            let socket = app.connect(to).unwrap();
            assert_eq!(socket.peername(), Ok(to));
            assert_eq!(socket.sockname().ip(), pod.ip(Family::of(&to.ip())));
            let question = question(4);
            socket.send(&[&(question.len() as u16).to_be_bytes(), &question[..]].concat()).unwrap();
            let answer = socket.receive(512).unwrap().data;
            let answer =
                if answer.len() == 2 { socket.receive(512).unwrap().data } else { answer[2..].to_vec() };
            assert!(answers(&answer, 4), "{answer:?}");
        }
        assert_eq!(proxy.take_questions().len(), 2);
    });
}

#[test]
fn the_proxys_own_questions_go_to_the_server() {
    kernel_test(|node| {
        let (pod, upstream) = (captured(node), node.pod("upstream"));
        let mut proxy = DnsProxy::start(&pod);
        let addresses =
            [upstream.at(Family::V4, 53), upstream.at(Family::V6, 53)].map(|address| address.to_string());
        let real = DnsServer::listen(&upstream, &addresses.each_ref().map(String::as_str));
        for user in [User::PROXY, User { uid: 1000, gid: 1337 }] {
            let process = pod.process("istio-proxy", user);
            for to in addresses.each_ref().map(|address| server(address)) {
                let socket = process.udp(Family::of(&to.ip()));
                socket.send_to(&question(5), to).unwrap();
                assert_eq!(socket.receive(512).unwrap().from, Some(to));
            }
        }
        assert_eq!((proxy.take_questions().len(), real.take_questions()), (0, 4));
    });
}

#[test]
fn without_capture_and_with_53_excluded_dns_is_left_alone() {
    kernel_test(|node| {
        let upstream = node.pod("upstream");
        let to = upstream.at(Family::V4, 53);
        let real = DnsServer::listen(&upstream, &[&to.to_string()]);
        for (name, flags) in
            [("plain", &[][..]), ("excluded", &["--dns-capture", "--exclude-outbound-ports", "53"][..])]
        {
            let pod = node.pod(name);
            node.attach(&pod, flags);
            let mut proxy = DnsProxy::start(&pod);
            let socket = pod.app().udp(Family::V4);
            socket.send_to(&question(6), to).unwrap();
            assert_eq!(socket.receive(512).unwrap().from, Some(to), "{name}");
            assert_eq!((proxy.take_questions().len(), real.take_questions()), (0, 1), "{name}");
        }
    });
}

#[test]
fn no_proxy_means_no_answer_from_elsewhere() {
    kernel_test(|node| {
        let (pod, upstream) = (captured(node), node.pod("upstream"));
        let to = upstream.at(Family::V4, 53);
        let real = DnsServer::listen(&upstream, &[&to.to_string()]);
        let socket = pod.app().udp(Family::V4);
        socket.send_to(&question(7), to).unwrap();
        assert!(socket.receive_within(512, 300).is_err());
        assert_eq!(real.take_questions(), 0);
    });
}

/// The resolver of the machine's C library, with a resolv.conf of its own. glibc sends the questions for A
/// and AAAA from one connected socket with sendmmsg().
#[test]
fn the_c_library_resolves() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        let text = output(&mut resolver(node, &pod, "nameserver 10.96.0.10\n", "getent ahosts a.test"));
        assert!(text.contains(&ANSWER.to_string()), "{text}");
        assert!(proxy.take_questions().len() >= 2);
    });
}

#[test]
fn dig_resolves_over_udp_and_tcp_in_both_families() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        for options in ["@10.96.0.10", "@10.96.0.10 +tcp", "@2001:db8::53", "@2001:db8::53 +tcp"] {
            let dig = format!("dig {options} +time=3 +tries=1 a.test");
            let text = output(&mut resolver(node, &pod, "", &dig));
            let asked = options.split(' ').next().unwrap_or_default().trim_start_matches('@');
            assert!(text.contains(&ANSWER.to_string()), "{dig}: {text}");
            assert!(text.contains(&format!("SERVER: {asked}#53")), "{dig}: {text}");
        }
        assert_eq!(proxy.take_questions().len(), 4);
    });
}

/// A shell line in the pod, in a mount namespace where /etc/resolv.conf is what the test says.
fn resolver(node: &Node, pod: &Pod, resolv_conf: &str, line: &str) -> Command {
    let file = node.dir().join("resolv.conf");
    std::fs::write(&file, resolv_conf).expect("write resolv.conf");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-ec"]);
    command.arg(format!(
        "mount --bind {} /etc/resolv.conf; exec setpriv --reuid=1000 --regid=1000 --clear-groups -- {line}",
        file.display()
    ));
    pod.netns().enter(&mut command, Some(&pod.container("app")));
    command
}

/// What musl does: all servers are asked at once from one unbound socket, A and AAAA interleaved, and the
/// first answers from any of them count.
#[test]
fn parallel_questions_to_all_servers_with_sendmmsg() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::start(&pod);
        let mut command = in_pod(&pod, Path::new(&harness::binary("pod-oddities")), User::APP);
        let text = output(command.arg("sendmmsg").args(SERVERS4));
        let sources: Vec<&str> = text.lines().collect();
        // Two questions to each server, in one sendmmsg(); the answers read by one recvmmsg().
        let mut expected: Vec<&str> = SERVERS4.iter().flat_map(|server| [*server, *server]).collect();
        expected.sort_unstable();
        let mut sorted = sources.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        assert_eq!(proxy.take_questions().len(), 6);
    });
}

#[test]
fn a_proxy_that_answers_from_another_address_is_counted_and_answered() {
    kernel_test(|node| {
        let pod = captured(node);
        let mut proxy = DnsProxy::plain(&pod);
        for servers in [&SERVERS4[..2], &SERVERS6[..]] {
            let socket = pod.app().udp(if servers[0].contains('[') { Family::V6 } else { Family::V4 });
            for (id, to) in servers.iter().enumerate() {
                socket.send_to(&question(id as u16), server(to)).unwrap();
            }
            for (id, from) in servers.iter().enumerate() {
                let datagram = socket.receive(512).unwrap();
                assert!(answers(&datagram.data, id as u16), "{datagram:?}");
                assert_eq!(datagram.from, Some(server(from)));
            }
        }
        assert_eq!(proxy.take_questions().len(), 4);
        assert_eq!(node.count(&pod, Event::DnsAnsweredElsewhere), 4);
    });
}

#[test]
fn the_proxys_socket_is_closed_to_the_outside() {
    kernel_test(|node| {
        let (pod, peer) = (captured(node), node.pod("peer"));
        let mut proxy = DnsProxy::start(&pod);
        for family in Family::ALL {
            let socket = peer.app().udp(family);
            socket.connect(pod.at(family, 15053)).unwrap();
            socket.send(&question(1)).unwrap();
            assert_eq!(
                // A neighbour that is not found at once is asked for again after a second.
                socket.receive_within(512, 5000).map(|datagram| datagram.from),
                Err(Errno::ECONNREFUSED),
                "{family:?}, {} of those outside were turned away",
                node.count(&pod, Event::InboundForeign)
            );
            let inside = pod.app().udp(family);
            inside.send_to(&question(2), pod.at(family, 15053)).unwrap();
            assert_eq!(
                inside.receive(512).unwrap().from,
                Some(pod.at(family, 15053)),
                "inside it is reachable"
            );
        }
        assert!(peer.app().connect(pod.at(Family::V4, 15053)).is_err());
        assert_eq!(proxy.take_questions().len(), 2);
        assert_eq!(node.count(&pod, Event::InboundForeign), 2);
    });
}

#[test]
fn no_other_user_has_the_dns_proxys_port() {
    kernel_test(|node| {
        let pod = captured(node);
        let app = pod.app();
        for socket in [app.udp(Family::V4), app.tcp(Family::V4)] {
            for at in ["127.0.0.1:15053", "0.0.0.0:15053"] {
                assert_eq!(socket.bind(server(at)), Err(Errno::EADDRINUSE), "{at}");
            }
        }
        let text = ask(&pod, User::APP, "unnamed", &[SERVERS4[0], SERVERS4[1], "10.77.0.1:9999"]);
        assert!(text.contains("pod-dns:"), "{text}");
    });
}

#[test]
fn more_ipv6_servers_than_addresses_are_refused_and_counted() {
    kernel_test(|node| {
        let pod = captured(node);
        let _proxy = DnsProxy::start(&pod);
        let socket = pod.app().udp(Family::V6);
        let mut answered = 0;
        for number in 0..20 {
            let to = server(&format!("[2001:db8::{number:x}]:53"));
            match socket.send_to(&question(number), to) {
                Ok(_) => {
                    assert_eq!(socket.receive(512).unwrap().from, Some(to));
                    answered += 1;
                }
                Err(errno) => assert_eq!(errno, Errno::ECONNREFUSED),
            }
        }
        // `::1` has an address of its own.
        assert_eq!(answered, redirect_common::dns::ADDRESSES6 - 1);
        assert_eq!(node.count(&pod, Event::DnsRefused), u64::from(20 - answered));
        let local = server("[::1]:53");
        socket.send_to(&question(1), local).unwrap();
        assert_eq!(socket.receive(512).unwrap().from, Some(local));
    });
}

#[test]
fn detach_takes_back_what_dns_capture_added() {
    kernel_test(|node| {
        let pod = node.pod("client");
        let state = |pod: &Pod| {
            ["-4 route show table all", "-6 route show table all", "addr show"].map(|arguments| {
                let mut command = Command::new("ip");
                let text = pod.netns().output_of(command.args(arguments.split(' ')));
                // When the test begins the link-local address is still tentative.
                let lines = text.lines().filter(|line| !line.contains("fe80"));
                lines.map(str::to_owned).collect::<BTreeSet<_>>()
            })
        };
        // The kernel makes the route of an address a moment after the address.
        let own = || state(&pod)[1].iter().any(|line| line.starts_with("local fd77::2 "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !own() {
            assert!(Instant::now() < deadline, "{:?}", state(&pod));
        }
        let before = state(&pod);
        // Twice: a repeated attach must not take its own additions for the pod's.
        for _ in 0..2 {
            node.attach(&pod, &["--dns-capture"]);
        }
        let _proxy = DnsProxy::start(&pod);
        let socket = pod.app().udp(Family::V6);
        socket.connect(server(SERVERS6[0])).unwrap();
        assert_eq!(socket.sockname().ip(), pod.ip(Family::V6), "the route of an address on lo is gone");
        assert_ne!(state(&pod), before);
        node.detach(&pod);
        assert_eq!(state(&pod), before);
    });
}

/// The resolver asks its own upstream, which is not listed, as any application would; the proxy asks the
/// resolver.
#[test]
fn a_resolver_in_the_pod_is_no_loop() {
    kernel_test(|node| {
        let (pod, upstream) = (node.pod("client"), node.pod("upstream"));
        node.attach(&pod, &["--dns-capture", "--dns-servers", "127.0.0.1"]);
        pod.netns().sysctl("net/ipv4/ip_unprivileged_port_start", "0");
        let mut proxy = DnsProxy::start(&pod);
        let real = DnsServer::listen(&upstream, &[&upstream.at(Family::V4, 53).to_string()]);
        let mut resolver = DnsProxy::with(&pod, User::APP, &["127.0.0.1:53"]);
        let local = server("127.0.0.1:53");
        // The application's question is captured, the proxy's own reaches the resolver, and the resolver's
        // goes out.
        let app = pod.app().udp(Family::V4);
        app.send_to(&question(1), local).unwrap();
        assert_eq!(app.receive(512).unwrap().from, Some(local));
        assert_eq!((proxy.take_questions().len(), resolver.take_questions().len()), (1, 0));
        let upwards = pod.proxy().udp(Family::V4);
        upwards.send_to(&question(2), local).unwrap();
        assert_eq!(upwards.receive(512).unwrap().from, Some(local));
        assert_eq!((proxy.take_questions().len(), resolver.take_questions().len()), (0, 1));
        let outwards = pod.app().udp(Family::V4);
        outwards.send_to(&question(3), upstream.at(Family::V4, 53)).unwrap();
        assert_eq!(outwards.receive(512).unwrap().from, Some(upstream.at(Family::V4, 53)));
        assert_eq!((proxy.take_questions().len(), real.take_questions()), (0, 1));
    });
}
