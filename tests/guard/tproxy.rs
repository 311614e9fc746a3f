//! The same faults in TPROXY mode: the sidecar goes on in its client's name, or not at all.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use harness::{Capabilities, Errno, Family, Node, Service, Sidecar, User, await_no_links, kernel_test};

use crate::faults::links;
use crate::{PORT, Scene};

const TPROXY: [&str; 2] = ["--interception-mode", "TPROXY"];

/// With and without real capabilities: with them the kernel would let the sidecar pretend.
const SIDECARS: [(User, Capabilities); 2] =
    [(User::PROXY, Capabilities::OfUser), (User::TPROXY, Capabilities::OfUser)];

/// A pod whose sidecar goes on to the application in its client's name.
fn imitating<'a>(node: &'a Node, (user, capabilities): (User, Capabilities)) -> Scene<'a> {
    let mut scene = Scene::new(node, &TPROXY);
    scene.sidecar = None;
    let builder = Sidecar::builder(&scene.pod).service(Service::Imitate);
    scene.sidecar = Some(builder.user(user, capabilities).start());
    scene
}

/// The clients that the application has seen, one try for each family. A try that is not answered within a
/// moment gives none.
fn clients(scene: &Scene<'_>) -> Vec<IpAddr> {
    let mut sockets = Vec::new();
    for family in Family::ALL {
        let socket = scene.server.tcp_nonblocking(family);
        let to = scene.pod.at(family, PORT);
        match socket.connect(to) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => assert_eq!(error, Errno::ECONNREFUSED, "{to}"),
        }
        match socket.await_connect() {
            Ok(()) => drop(socket.receive_within(100, 500)),
            Err(error) => assert_eq!(error, Errno::ECONNREFUSED, "{to}"),
        }
        sockets.push(socket);
    }
    scene.app.take_seen().iter().map(|seen| seen.client.ip()).collect()
}

#[test]
fn all_links_gone() {
    for unmount in [true, false] {
        kernel_test(|node| {
            let scene = Scene::new(node, &TPROXY);
            scene.assert_in_order();
            if unmount {
                node.unmount_bpffs();
            } else {
                fs::remove_dir_all(node.bpffs().join("redirect-cni")).expect("remove the pins");
            }
            await_no_links();
            scene.assert_closed(&scene.app);
        });
    }
}

#[test]
fn with_all_links_gone_no_sidecar_goes_on() {
    for sidecar in SIDECARS {
        kernel_test(|node| {
            let scene = imitating(node, sidecar);
            let peer: Vec<IpAddr> = Family::ALL.map(|family| scene.peer.ip(family)).to_vec();
            assert_eq!(clients(&scene), peer, "in order");
            // What the application answered through the sidecar is no matter of this test.
            drop(scene.tap.take(Duration::from_millis(50)));
            node.unmount_bpffs();
            await_no_links();
            assert_eq!(clients(&scene), Vec::<IpAddr>::new(), "{sidecar:?}");
            scene.assert_nothing_in_clear(&scene.tap.take(Duration::from_millis(50)));
        });
    }
}

#[test]
fn with_any_one_link_gone_the_application_sees_its_client_or_none() {
    let (mut count, mut number, mut named) = (1, 0, 0);
    while number < count {
        kernel_test(|node| {
            let scene = imitating(node, SIDECARS[1]);
            let mut pins = links(node);
            pins.sort();
            count = pins.len();
            let pin = &pins[number];
            fs::remove_file(pin).expect("remove a pin");
            // The kernel ends the link a little later; until then all goes its normal way.
            std::thread::sleep(Duration::from_millis(100));
            let allowed: Vec<IpAddr> = Family::ALL
                .iter()
                .map(|family| scene.peer.ip(*family))
                .chain(["127.0.0.6", "::6"].map(|ip| ip.parse().expect("an address")))
                .collect();
            for client in clients(&scene) {
                assert!(allowed.contains(&client), "{client} without {}", pin.display());
                named += usize::from(allowed[..2].contains(&client));
            }
        });
        number += 1;
    }
    assert!(count >= 9 && named > 0, "{count} links, {named} clients named");
}
