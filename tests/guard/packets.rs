//! SYNs that no hook of a socket sees: raw ones, with options, extension headers, fragments and VLAN tags
//! around them.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use harness::{Captured, Event, kernel_test};

use crate::raw::{self, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, TCP};
use crate::{FAMILIES, PORT, Scene, guarded};

/// The time that a packet may take.
const A_MOMENT: Duration = Duration::from_millis(50);

/// Whether the peer answered a SYN, or saw one at all.
fn reached(scene: &Scene<'_>, wire: &[Captured]) -> bool {
    wire.iter().any(|captured| scene.is_clear(captured))
}

#[test]
fn a_raw_syn_is_refused_and_its_sender_told() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for v6 in FAMILIES {
            let (own, peer) = (scene.pod.ip(v6), scene.peer.at(v6, PORT));
            let segment = raw::syn(own, peer);
            let packet = if v6 {
                raw::ipv6(own, peer.ip(), TCP, &segment)
            } else {
                raw::ipv4(own, peer.ip(), 0, &[], &segment)
            };
            // A recorder in the pod sees the reset come in.
            let inside = harness::Tap::on(scene.pod.netns());
            raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
            let wire = scene.tap.take(A_MOMENT);
            assert!(!reached(&scene, &wire), "{wire:?}");
            const RST: u8 = 0x04;
            let resets: Vec<_> = inside
                .take(Duration::ZERO)
                .into_iter()
                .filter(|captured| captured.flags.is_some_and(|flags| flags & RST != 0))
                .collect();
            assert!(resets.iter().any(|reset| reset.src == peer && reset.dst.ip() == own), "{resets:?}");
        }
        assert_eq!(node.count(&scene.pod, Event::GuardRaw), 2);
    });
}

#[test]
fn without_the_guard_a_raw_syn_is_answered() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "off"]);
        for v6 in FAMILIES {
            let (own, peer) = (scene.pod.ip(v6), scene.peer.at(v6, PORT));
            let segment = raw::syn(own, peer);
            let packet = if v6 {
                raw::ipv6(own, peer.ip(), TCP, &segment)
            } else {
                raw::ipv4(own, peer.ip(), 0, &[], &segment)
            };
            raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
            let wire = scene.tap.take(A_MOMENT);
            assert!(wire.iter().any(|captured| captured.src == peer && captured.is_syn_ack()), "{wire:?}");
        }
    });
}

/// Every way to write the SYN that the guard has to see through, with what counts it.
fn disguises(own: IpAddr, peer: std::net::SocketAddr) -> Vec<(&'static str, Vec<u8>, Event)> {
    const MORE: u16 = 0x2000;
    let segment = raw::syn(own, peer);
    let to = peer.ip();
    if !own.is_ipv6() {
        let overlap = raw::ipv4(own, to, 1, &[], &segment[8..]);
        return vec![
            // NOP three times, then the end of the list.
            ("options", raw::ipv4(own, to, 0, &[1, 1, 1, 0], &segment), Event::GuardRaw),
            ("a first fragment", raw::ipv4(own, to, MORE, &[], &segment), Event::GuardRaw),
            ("a tiny first fragment", raw::ipv4(own, to, MORE, &[], &segment[..8]), Event::GuardHidden),
            ("an overlapping fragment", overlap, Event::GuardHidden),
        ];
    }
    let options = raw::extended(TCP, &segment);
    let twice = raw::extended(DESTINATION_OPTIONS, &options);
    let mut many = raw::extended(TCP, &segment);
    for _ in 0..9 {
        many = raw::extended(DESTINATION_OPTIONS, &many);
    }
    let fragment =
        |offset, more, bytes: &[u8]| raw::ipv6(own, to, FRAGMENT, &raw::fragment6(TCP, offset, more, bytes));
    vec![
        ("destination options", raw::ipv6(own, to, DESTINATION_OPTIONS, &options), Event::GuardRaw),
        ("hop by hop", raw::ipv6(own, to, HOP_BY_HOP, &twice), Event::GuardRaw),
        ("ten headers", raw::ipv6(own, to, DESTINATION_OPTIONS, &many), Event::GuardHidden),
        ("a first fragment", fragment(0, true, &segment), Event::GuardRaw),
        ("a tiny first fragment", fragment(0, true, &segment[..8]), Event::GuardHidden),
        ("an overlapping fragment", fragment(8, false, &segment[8..]), Event::GuardHidden),
        ("a fragment of one", fragment(0, false, &segment), Event::GuardRaw),
    ]
}

#[test]
fn disguised_on_the_way_out() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for v6 in FAMILIES {
            let peer = scene.peer.at(v6, PORT);
            for (name, packet, event) in disguises(scene.pod.ip(v6), peer) {
                let before = node.count(&scene.pod, event);
                let outside = harness::Tap::on(scene.peer.netns());
                raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
                assert_eq!(outside.take(A_MOMENT), [], "{name}");
                assert_eq!(node.count(&scene.pod, event), before + 1, "{name}");
            }
        }
    });
}

#[test]
fn disguised_on_the_way_in() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for pin in crate::faults::links(node) {
            if pin.ends_with("inbound") {
                std::fs::remove_file(pin).unwrap();
            }
        }
        std::thread::sleep(2 * A_MOMENT);
        for v6 in FAMILIES {
            let own = scene.pod.at(v6, PORT);
            for (name, packet, event) in disguises(scene.peer.ip(v6), own) {
                // On the way in a raw socket cannot be told from any other.
                let event = if event == Event::GuardRaw { Event::GuardInbound } else { event };
                let before = node.count(&scene.pod, event);
                raw::send(scene.peer.netns(), own.ip(), &packet).unwrap();
                std::thread::sleep(A_MOMENT);
                assert_eq!(scene.app.take_seen(), [], "{name}");
                assert_eq!(node.count(&scene.pod, event), before + 1, "{name}");
            }
        }
    });
}

/// The address of a pod's eth0 on its wire.
fn station(of: &harness::Pod) -> [u8; 6] {
    let text = of.netns().output_of(Command::new("ip").args(["-o", "link", "show", "dev", "eth0"]));
    let address =
        text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    let bytes: Vec<u8> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
    bytes.try_into().expect("six bytes")
}

#[test]
fn behind_a_vlan_tag() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for pin in crate::faults::links(node) {
            if pin.ends_with("inbound") {
                std::fs::remove_file(pin).unwrap();
            }
        }
        std::thread::sleep(2 * A_MOMENT);
        let (pod, peer) = (&scene.pod, &scene.peer);
        let stations = [pod, peer].map(station);
        // Two tags are what providers' networks use; a number of 0 is a priority only.
        let tags: [&[u8]; 3] = [&[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7], &[0x81, 0, 0, 0]];
        for v6 in FAMILIES {
            for tag in tags {
                let frame = |from: usize, segment: Vec<u8>, ends: [IpAddr; 2]| {
                    let mut frame = stations[1 - from].to_vec();
                    frame.extend(stations[from]);
                    frame.extend(tag);
                    frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
                    frame.extend(if v6 {
                        raw::ipv6(ends[0], ends[1], TCP, &segment)
                    } else {
                        raw::ipv4(ends[0], ends[1], 0, &[], &segment)
                    });
                    frame
                };
                let (own, theirs) = (pod.at(v6, PORT), peer.at(v6, PORT));
                let before = guarded(node, pod);
                let outside = harness::Tap::on(peer.netns());
                let out = frame(0, raw::syn(own.ip(), theirs), [own.ip(), theirs.ip()]);
                raw::send_frame(pod.netns(), "eth0", &out);
                let seen: Vec<_> = outside.take(A_MOMENT).into_iter().filter(|c| c.is_syn()).collect();
                assert_eq!(seen, [], "{tag:?}");
                assert_eq!(guarded(node, pod), before + 1, "out, {tag:?}");
                let into = frame(1, raw::syn(theirs.ip(), own), [theirs.ip(), own.ip()]);
                raw::send_frame(peer.netns(), "eth0", &into);
                // It is the sidecar's; or the kernel drops it, when no interface has the number of its tag.
                std::thread::sleep(4 * A_MOMENT);
                assert_eq!(scene.app.take_seen(), [], "{tag:?}");
            }
        }
    });
}

#[test]
fn a_socket_bound_to_an_interface_cannot_send_what_is_the_sidecars_out_of_it() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for v6 in FAMILIES {
            let socket = scene.pod.process("app", harness::User::ROOT).tcp_nonblocking(v6);
            socket.set_option_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0\0").unwrap();
            let connected = socket.connect(scene.peer.at(v6, PORT)).and_then(|()| socket.await_connect());
            assert_ne!(connected, Ok(()));
        }
        let wire = scene.tap.take(A_MOMENT);
        let syns: Vec<_> = wire.iter().filter(|captured| captured.is_syn()).collect();
        assert!(syns.is_empty(), "{syns:?}");
    });
}
