//! A process of the pod tries to get past its sidecar by what the kernel offers to everybody, and by what
//! CAP_NET_ADMIN in the pod's namespace allows. The table in SECURITY.md says what stops each.

use std::process::{Command, Stdio};
use std::time::Duration;

use harness::cli::Outcome;
use harness::{Capabilities, Event, Family, Pod, Process, User, kernel_test};

use crate::raw;
use crate::{PORT, Scene, await_count, counted};

/// How often a SYN left the pod when sockets with a route in their packets dialled. Such a socket sends to
/// the first stop of the route, whichever address it is connected to, and to the sidecar's port.
fn sent_by_a_route(scene: &Scene<'_>) -> usize {
    const LOOSE: u8 = 131;
    const SEGMENTS: u8 = 4;
    let _ = scene.tap.take(Duration::ZERO);
    // LSRR: no operation, option, length, pointer, address.
    let sender = admin(&scene.pod);
    let four = sender.tcp_nonblocking(Family::V4);
    let mut option = vec![1, LOOSE, 7, 4];
    option.extend(raw::octets(scene.peer.ip(Family::V4)));
    four.set_option_bytes(libc::IPPROTO_IP, libc::IP_OPTIONS, &option).unwrap();
    // A segment routing header with two segments, the last first: the second word is flags and tag.
    let six = sender.tcp_nonblocking(Family::V6);
    let mut header = vec![0, 4, SEGMENTS, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(raw::octets(scene.peer.ip(Family::V6)));
    six.set_option_bytes(libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header).unwrap();
    for (socket, family) in [(&four, Family::V4), (&six, Family::V6)] {
        let _ = socket.connect(scene.peer.at(family, PORT));
    }
    let wire = scene.tap.take(Duration::from_millis(100));
    let of_pod = [scene.pod.ip(Family::V4), scene.pod.ip(Family::V6)];
    wire.iter().filter(|packet| packet.dst.port() == 15001 && of_pod.contains(&packet.src.ip())).count()
}

#[test]
fn a_route_in_the_packets() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        assert_eq!(sent_by_a_route(&scene), 0);
        let counted =
            node.count(&scene.pod, Event::GuardOutbound) + node.count(&scene.pod, Event::GuardHidden);
        assert!(counted >= 2, "{counted}");
        node.attach(&scene.pod, &["--guard", "off"]);
        assert!(sent_by_a_route(&scene) > 0, "without the guard it gets out");
    });
}

/// A packet socket of the pod's, which needs CAP_NET_RAW, writes a SYN with all its headers.
#[test]
fn a_frame_of_a_packet_socket() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let (own, peer) = (scene.pod.ip(Family::V4), scene.peer.at(Family::V4, PORT));
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
        frame.extend(raw::ipv4(own, peer.ip(), 0, &[], &raw::syn(own, peer)));
        let seen = |bypass| {
            raw::send_frame_on(scene.pod.netns(), "eth0", &frame, bypass);
            let wire = scene.tap.take(Duration::from_millis(100));
            wire.iter().any(|packet| packet.src.ip() == own && packet.dst == peer)
        };
        assert!(!seen(false), "the guard sees it");
        await_count(node, &scene.pod, Event::GuardRaw, 1);
        assert!(seen(true), "PACKET_QDISC_BYPASS goes past all filters: SECURITY.md says so");
    });
}

/// A process with the capabilities over the pod's network, and no others.
fn admin(pod: &Pod) -> Process {
    pod.process_with("admin", User::APP, Capabilities::Network)
}

/// A command of somebody who may change the pod's network.
fn change(pod: &Pod, program: &str, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split(' ')).stdin(Stdio::null());
    let _ = pod.netns().output_of(&mut command);
}

/// A socket in repair mode is connected without a packet.
#[test]
fn a_socket_in_repair_mode_is_connected_to_where_the_policy_wants_it() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let socket = admin(&scene.pod).tcp(Family::V4);
        socket.set_option(libc::IPPROTO_TCP, libc::TCP_REPAIR, 1).unwrap();
        socket.bind(scene.pod.at(Family::V4, 40_404)).unwrap();
        socket.connect(scene.peer.at(Family::V4, PORT)).unwrap();
        socket.set_option(libc::IPPROTO_TCP, libc::TCP_REPAIR, 0).unwrap();
        let _ = socket.send(b"in clear");
        let wire = scene.tap.take(Duration::from_millis(100));
        assert!(wire.iter().all(|packet| packet.src.port() != 40_404), "{wire:?}");
        scene.assert_nothing_in_clear(&wire);
    });
}

/// The way from the application to the sidecar is one of addresses and routes. Who bends it gets no further.
#[test]
fn rules_and_routes_of_the_pods_own() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let gateway = scene.peer.ip(Family::V4);
        let peer = scene.peer.at(Family::V4, PORT);
        // The private prefix leads out of the pod.
        for command in [
            "rule add pref 0 to 127.64.0.0/10 table 77".to_owned(),
            format!("route add 127.64.0.0/10 via {gateway} table 77"),
            "rule del pref 0 table local".to_owned(),
            "rule add pref 1 table local".to_owned(),
        ] {
            change(&scene.pod, "ip", &command);
        }
        assert_stays(&scene, Event::GuardLoopback);
        for command in ["rule del pref 0", "rule del pref 1", "rule add pref 0 table local"] {
            change(&scene.pod, "ip", command);
        }
        assert_eq!(crate::dial(&scene.app, peer).map(|seen| seen.listener), Ok(15001));
        // The sidecar's port is translated back into the destination.
        let translate = format!("-t nat -A OUTPUT -p tcp --dport 15001 -j DNAT --to-destination {peer}");
        change(&scene.pod, "iptables-legacy", &translate);
        assert_stays(&scene, Event::GuardOutbound);
    });
}

/// The application dials the peer, and the guard stops it. (What the guard answers from an address of the
/// private prefix the kernel drops as a martian, so the call is not waited for.)
fn assert_stays(scene: &Scene<'_>, event: Event) {
    let before = scene.node.count(&scene.pod, event);
    let socket = scene.app.tcp_nonblocking(Family::V4);
    let _ = socket.connect(scene.peer.at(Family::V4, PORT));
    // The SYN is repeated after a second.
    assert!(counted(scene.node, &scene.pod, event, before + 1) > before, "{event:?}");
    drop(socket);
    scene.assert_nothing_in_clear(&scene.tap.take(Duration::from_millis(50)));
}

/// What the pod's root with CAP_NET_ADMIN can do, and what shows it.
#[test]
fn who_removes_the_guard_and_translates_gets_out_and_is_shown() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let peer = scene.peer.at(Family::V4, PORT);
        change(&scene.pod, "tc", "filter del dev eth0 egress");
        let translate = format!("-t nat -A OUTPUT -p tcp --dport 15001 -j DNAT --to-destination {peer}");
        change(&scene.pod, "iptables-legacy", &translate);
        assert_eq!(crate::dial(&scene.app, peer).map(|seen| seen.listener), Ok(PORT));
        let listed = Outcome::of(node.redirect().arg("list"));
        assert_eq!(listed.code, Some(1), "{listed:?}");
        assert!(listed.stdout.contains("the filter guard_egress on eth0 is gone"), "{listed:?}");
    });
}

/// The kernel lets an interface have any name without a blank, a slash or a colon.
#[test]
fn the_name_of_an_interface_cannot_write_to_a_terminal() {
    const NAME: &str = "e\u{1b}[2J\u{7}x";
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let mut command = Command::new("ip");
        let _ = scene
            .pod
            .netns()
            .output_of(command.args(["link", "add", NAME, "type", "veth", "peer", "name", "y"]));
        let mut command = Command::new("ip");
        let _ = scene.pod.netns().output_of(command.args(["link", "set", NAME, "up"]));
        let pod = scene.pod.name().to_owned();
        let commands: [&[&str]; 6] =
            [&["list"], &["show", &pod], &["doctor", "--pod", &pod], &["repair"], &["stats"], &["list"]];
        for arguments in commands {
            let outcome = Outcome::of(node.redirect().args(arguments));
            for text in [&outcome.stdout, &outcome.stderr] {
                assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{arguments:?}: {text:?}");
            }
        }
        node.attach(&scene.pod, &[]);
        let shown = Outcome::of(node.redirect().args(["show", &pod]));
        assert!(shown.stdout.contains(r"e\u{1b}[2J\u{7}x"), "{shown:?}");
        assert!(!shown.stdout.contains('\u{1b}'), "{shown:?}");
    });
}
