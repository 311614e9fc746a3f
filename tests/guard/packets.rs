//! SYNs that no hook of a socket sees: raw ones, with options, extension headers, fragments and VLAN tags
//! around them.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use harness::{Captured, Event, Family, kernel_test};

use crate::raw::{self, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, TCP};
use crate::{PORT, Scene, await_count, dial};

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
        for family in Family::ALL {
            let (own, peer) = (scene.pod.ip(family), scene.peer.at(family, PORT));
            let segment = raw::syn(own, peer);
            let packet = if family == Family::V6 {
                raw::ipv6(own, peer.ip(), TCP, &segment)
            } else {
                raw::ipv4(own, peer.ip(), 0, &[], &segment)
            };
            // A recorder in the pod sees the reset come in.
            let inside = harness::Tap::on(scene.pod.netns());
            raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
            const RST: u8 = 0x04;
            let is_reset = |captured: &Captured| captured.flags.is_some_and(|flags| flags & RST != 0);
            assert!(inside.sees(|c| is_reset(c) && c.src == peer && c.dst.ip() == own), "{family:?}");
            let wire = scene.tap.take(A_MOMENT);
            assert!(!reached(&scene, &wire), "{wire:?}");
        }
        assert_eq!(node.count(&scene.pod, Event::GuardRaw), 2);
    });
}

#[test]
fn without_the_guard_a_raw_syn_is_answered() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "off"]);
        for family in Family::ALL {
            let (own, peer) = (scene.pod.ip(family), scene.peer.at(family, PORT));
            let segment = raw::syn(own, peer);
            let packet = if family == Family::V6 {
                raw::ipv6(own, peer.ip(), TCP, &segment)
            } else {
                raw::ipv4(own, peer.ip(), 0, &[], &segment)
            };
            raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
            assert!(scene.tap.sees(|captured| captured.src == peer && captured.is_syn_ack()), "{family:?}");
        }
    });
}

/// What a peer had sent before it knew that its connection is over is not one that the pod refused.
#[test]
fn a_late_segment_is_counted_as_no_refused_connection() {
    kernel_test(|node| {
        for guard in ["enforce", "off"] {
            let (pod, peer) = (node.pod(guard), node.pod(&format!("peer-{guard}")));
            node.attach(&pod, &["--guard", guard]);
            for family in Family::ALL {
                let (own, to) = (peer.ip(family), pod.at(family, 40_000));
                let segment = raw::late(own, to);
                let packet = if family == Family::V6 {
                    raw::ipv6(own, to.ip(), TCP, &segment)
                } else {
                    raw::ipv4(own, to.ip(), 0, &[], &segment)
                };
                raw::send(peer.netns(), to.ip(), &packet).unwrap();
            }
            await_count(node, &pod, Event::InboundNoSocket, 2);
            assert_eq!(node.count(&pod, Event::InboundRefused), 0, "{guard}");
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
        for family in Family::ALL {
            let peer = scene.peer.at(family, PORT);
            for (name, packet, event) in disguises(scene.pod.ip(family), peer) {
                let before = node.count(&scene.pod, event);
                let outside = harness::Tap::on(scene.peer.netns());
                raw::send(scene.pod.netns(), peer.ip(), &packet).unwrap();
                await_count(node, &scene.pod, event, before + 1);
                assert_eq!(outside.take(A_MOMENT), [], "{name}");
            }
        }
    });
}

#[test]
fn disguised_on_the_way_in() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        crate::faults::end_inbound(node);
        for family in Family::ALL {
            let own = scene.pod.at(family, PORT);
            for (name, packet, event) in disguises(scene.peer.ip(family), own) {
                // On the way in a raw socket cannot be told from any other.
                let event = if event == Event::GuardRaw { Event::GuardInbound } else { event };
                let before = node.count(&scene.pod, event);
                raw::send(scene.peer.netns(), own.ip(), &packet).unwrap();
                await_count(node, &scene.pod, event, before + 1);
                assert_eq!(scene.app.take_seen(), [], "{name}");
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

/// The ends of a wire, to write frames with tags for.
struct Tagged<'a> {
    scene: &'a Scene<'a>,
    family: Family,
    tag: &'static [u8],
}

impl Tagged<'_> {
    /// A frame with a SYN from one end to the other; the pod is end 0, the peer end 1.
    fn syn(&self, from: usize) -> Vec<u8> {
        let ends = [&self.scene.pod, &self.scene.peer];
        let (src, dst) = (ends[from].ip(self.family), ends[1 - from].at(self.family, PORT));
        let segment = raw::syn(src, dst);
        let mut frame = station(ends[1 - from]).to_vec();
        frame.extend(station(ends[from]));
        frame.extend(self.tag);
        if self.family == Family::V6 {
            frame.extend([0x86, 0xdd]);
            frame.extend(raw::ipv6(src, dst.ip(), TCP, &segment));
        } else {
            frame.extend([0x08, 0x00]);
            frame.extend(raw::ipv4(src, dst.ip(), 0, &[], &segment));
        }
        frame
    }
}

#[test]
fn behind_a_vlan_tag() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        crate::faults::end_inbound(node);
        let (pod, peer) = (&scene.pod, &scene.peer);
        // Two tags are what providers' networks use; a number of 0 is a priority only.
        let tags: [(&[u8], bool); 3] = [
            (&[0x81, 0, 0, 7], false),
            (&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7], false),
            (&[0x81, 0, 0, 0], true),
        ];
        for family in Family::ALL {
            for (tag, priority_only) in tags {
                let tagged = Tagged { scene: &scene, family, tag };
                let count = |event| node.count(pod, event);
                let (out, into) = (count(Event::GuardRaw), count(Event::GuardInbound));
                let outside = harness::Tap::on(peer.netns());
                raw::send_frame(pod.netns(), "eth0", &tagged.syn(0));
                await_count(node, pod, Event::GuardRaw, out + 1);
                raw::send_frame(peer.netns(), "eth0", &tagged.syn(1));
                await_count(node, pod, Event::GuardInbound, into + 1);
                // Answered is the one whose tag is no interface's; the kernel has no place for the others.
                let answer = |c: &Captured| c.src == pod.at(family, PORT) && c.is_syn_ack();
                let of_pod = |c: &Captured| c.src.ip() == pod.ip(family);
                match crate::bound_by_the_guard() {
                    Ok(_) if priority_only => assert!(outside.sees(answer), "{tag:?}"),
                    Ok(_) => assert!(!outside.take(A_MOMENT).iter().any(of_pod), "{tag:?}"),
                    // What cannot be bound is refused, with a reset.
                    Err(_) => assert!(!outside.take(A_MOMENT).iter().any(answer), "{tag:?}"),
                }
                assert_eq!(scene.app.take_seen(), [], "{tag:?}");
            }
        }
    });
}

/// A bridge that filters, and a router, take the sender's socket off a packet. A cable does not.
#[test]
fn from_a_neighbour_on_the_same_machine_without_anything_in_between() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        crate::cable(&scene.pod, &scene.peer);
        node.attach(&scene.pod, &[]);
        crate::faults::end_inbound(node);
        for (to, times) in [("10.99.0.2:8080", 1), ("[fd99::2]:8080", 2)] {
            let seen = dial(&scene.server, to.parse().unwrap()).map(|seen| seen.listener);
            assert_eq!(seen, crate::bound_by_the_guard(), "{to}");
            await_count(node, &scene.pod, Event::GuardInbound, times);
        }
        assert_eq!(scene.app.take_seen(), []);
    });
}

#[test]
fn a_socket_bound_to_an_interface_cannot_send_what_is_the_sidecars_out_of_it() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for family in Family::ALL {
            let socket = scene.pod.process("app", harness::User::ROOT).tcp_nonblocking(family);
            socket.set_option_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0\0").unwrap();
            let connected = socket.connect(scene.peer.at(family, PORT)).and_then(|()| socket.await_connect());
            assert_ne!(connected, Ok(()));
        }
        let wire = scene.tap.take(A_MOMENT);
        let syns: Vec<_> = wire.iter().filter(|captured| captured.is_syn()).collect();
        assert!(syns.is_empty(), "{syns:?}");
    });
}
