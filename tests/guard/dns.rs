//! DNS questions, where DNS is captured: none leaves the pod but the DNS proxy's own.

use std::net::SocketAddr;
use std::time::Duration;

use harness::{Captured, Event, Family, Process, Service, User, kernel_test};

use crate::{Scene, await_count};

const QUESTION: &[u8] = b"a question for a name server";
const A_MOMENT: Duration = Duration::from_millis(50);

/// Where the DNS proxy listens.
fn proxy_at(family: Family) -> SocketAddr {
    let ip = if family == Family::V6 { "::1" } else { "127.0.0.1" };
    SocketAddr::new(ip.parse().expect("an address"), 15053)
}

/// Whether the question was seen outside the pod after a moment.
fn leaked(scene: &Scene<'_>) -> bool {
    scene.tap.take(A_MOMENT).iter().any(is_question)
}

/// Whether the question comes out of the pod, sooner or later.
fn passed(scene: &Scene<'_>) -> bool {
    scene.tap.sees(is_question)
}

fn is_question(captured: &Captured) -> bool {
    captured.payload == QUESTION
}

fn ask(process: &Process, to: SocketAddr) {
    // A refused question is an error, or silence.
    let _ = process.udp(Family::of(&to.ip())).send_to(QUESTION, to);
}

#[test]
fn a_question_that_no_hook_sees() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--dns-capture"]);
        let elsewhere = node.pod("elsewhere");
        let stray = Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), User::APP);
        for (family, times) in Family::ALL.into_iter().zip([1, 3]) {
            ask(&stray, scene.peer.at(family, 53));
            await_count(node, &scene.pod, Event::GuardDns, times);
            assert!(!leaked(&scene), "over UDP, {family:?}");
            assert_eq!(
                crate::dial(&stray, scene.peer.at(family, 53)).map(|seen| seen.listener),
                Err(harness::Errno::ECONNREFUSED)
            );
        }
        assert_eq!(node.count(&scene.pod, Event::GuardDns), 4);
        // The DNS proxy asks any server, and other datagrams are left alone.
        for family in Family::ALL {
            ask(&scene.pod.proxy(), scene.peer.at(family, 53));
            assert!(passed(&scene), "the proxy's question, {family:?}");
            ask(&stray, scene.peer.at(family, 5353));
            assert!(passed(&scene), "another port, {family:?}");
        }
        assert_eq!(node.count(&scene.pod, Event::GuardDns), 4);
    });
}

#[test]
fn without_dns_capture_questions_go_their_way() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for family in Family::ALL {
            ask(&scene.app, scene.peer.at(family, 53));
            assert!(passed(&scene), "{family:?}");
        }
    });
}

#[test]
fn the_interface_chosen_by_the_socket() {
    kernel_test(|node| {
        const IP_UNICAST_IF: i32 = 50;
        const IPV6_UNICAST_IF: i32 = 76;
        let scene = Scene::new(node, &["--dns-capture"]);
        let proxy = scene.pod.proxy();
        let eth0 = scene.pod.netns().run(|| nix::net::if_::if_nametoindex("eth0")).unwrap();
        for family in Family::ALL {
            let at = proxy.udp(family);
            at.bind(proxy_at(family)).unwrap();
            let socket = scene.app.udp(family);
            let (level, name) = if family == Family::V6 {
                (libc::IPPROTO_IPV6, IPV6_UNICAST_IF)
            } else {
                (libc::IPPROTO_IP, IP_UNICAST_IF)
            };
            socket.set_option(level, name, eth0.to_be() as i32).unwrap();
            let _ = socket.send_to(QUESTION, scene.peer.at(family, 53));
            assert!(!leaked(&scene), "{family:?}");
        }
    });
}

#[test]
fn a_question_that_the_policy_lets_pass_by_its_group() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--dns-capture"]);
        let group = scene.pod.process("istio-proxy", User { uid: 1000, gid: 1337 });
        let name_server = scene.peer.process("app", User::ROOT);
        name_server.serve(&Family::ALL.map(|family| crate::any(family, 53)), Service::Tell).unwrap();
        for family in Family::ALL {
            ask(&group, scene.peer.at(family, 53));
            assert!(passed(&scene), "sendto, {family:?}");
            let socket = group.udp(family);
            socket.connect(scene.peer.at(family, 53)).unwrap();
            socket.send(QUESTION).unwrap();
            assert!(passed(&scene), "connect, {family:?}");
            assert_eq!(crate::dial(&group, scene.peer.at(family, 53)).map(|seen| seen.listener), Ok(53));
        }
        assert_eq!(crate::guarded(node, &scene.pod), 0);
    });
}
