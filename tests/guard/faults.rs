//! What redirects is taken away, piece by piece and at once. The guard stays.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::cli::Outcome;
use harness::{Event, Family, Node, Process, User, await_no_links, kernel_test};

use crate::{PORT, Scene, any, bound_by_the_guard, dial};

#[test]
fn without_the_guard_the_same_faults_are_open() {
    // What the other tests here assert can fail, and the recorder sees it.
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "off"]);
        scene.assert_in_order();
        node.unmount_bpffs();
        await_no_links();
        for family in Family::ALL {
            assert_eq!(dial(&scene.app, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
            assert_eq!(dial(&scene.server, scene.pod.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
        }
        // The recorder gets what is sent before its receiver does: both were answered.
        let wire = scene.tap.take(std::time::Duration::from_millis(50));
        assert!(wire.iter().any(|captured| scene.is_clear(captured) && captured.is_syn()), "{wire:?}");
        assert!(wire.iter().any(|captured| scene.is_clear(captured) && !captured.payload.is_empty()));
    });
}

#[test]
fn bpffs_unmounted() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        scene.assert_in_order();
        node.unmount_bpffs();
        await_no_links();
        scene.assert_closed(&scene.app);
        // The sidecar is still the sidecar.
        let proxy = scene.pod.proxy();
        for family in Family::ALL {
            assert_eq!(dial(&proxy, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
        }
    });
}

#[test]
fn all_pins_removed() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        fs::remove_dir_all(node.bpffs().join("redirect-cni")).expect("remove the pins");
        await_no_links();
        scene.assert_closed(&scene.app);
    });
}

#[test]
fn a_sidecar_that_starts_when_nothing_registers_listeners() {
    kernel_test(|node| {
        let mut scene = Scene::new(node, &[]);
        node.unmount_bpffs();
        await_no_links();
        scene.sidecar = None;
        scene.assert_closed(&scene.app);
        for localhost in [false, true] {
            scene.sidecar = None;
            let builder = harness::Sidecar::builder(&scene.pod);
            scene.sidecar = Some(if localhost { builder.localhost().start() } else { builder.start() });
            for family in Family::ALL {
                let seen = dial(&scene.server, scene.pod.at(family, PORT));
                assert_eq!(seen.map(|seen| seen.listener), bound_by_the_guard(), "localhost {localhost}");
            }
            scene.assert_closed(&scene.app);
        }
    });
}

/// The pins of the pods' links.
pub(crate) fn links(node: &Node) -> Vec<PathBuf> {
    fn files(folder: PathBuf, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                files(entry.path(), found);
            } else if entry.path().components().any(|part| part.as_os_str() == "pods") {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    files(node.bpffs().join("redirect-cni"), &mut found);
    found
}

/// Takes the link of `inbound` away.
pub(crate) fn end_inbound(node: &Node) {
    let mut pins = links(node);
    pins.retain(|pin| pin.ends_with("inbound"));
    assert!(!pins.is_empty(), "inbound is linked");
    harness::end_inbound(&pins);
}

#[test]
fn each_single_link_gone() {
    let count = {
        let mut count = 0;
        kernel_test(|node| {
            count = {
                let _scene = Scene::new(node, &[]);
                links(node).len()
            }
        });
        count
    };
    assert!(count >= 7, "{count} links");
    for number in 0..count {
        kernel_test(|node| {
            let scene = Scene::new(node, &[]);
            let mut pins = links(node);
            pins.sort();
            fs::remove_file(&pins[number]).expect("remove a pin");
            // The kernel ends the link a little later; until then the connection goes its normal way.
            std::thread::sleep(std::time::Duration::from_millis(100));
            scene.assert_closed(&scene.app);
        });
    }
}

#[test]
fn a_process_in_another_cgroup_of_the_same_namespace() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let elsewhere = node.pod("elsewhere");
        let stray = Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), User::APP);
        scene.assert_closed(&stray);
        // Twice: each family once.
        assert_eq!(node.count(&scene.pod, Event::GuardOutbound), 2);
        // The same inbound: a server that no hook knows is not reached past the sidecar.
        for family in Family::ALL {
            stray.serve(&[any(family, 9090)], harness::Service::Tell).unwrap();
            assert_eq!(dial(&scene.server, scene.pod.at(family, 9090)).map(|seen| seen.listener), Ok(15006));
        }
        assert_eq!(stray.take_seen(), []);
    });
}

#[test]
fn gc_where_the_pods_paths_cannot_be_seen() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let netns = scene.pod.netns().path().parent().expect("a file is in a directory").to_owned();
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs tmpfs \"$0\" && mount -t tmpfs tmpfs \"$1\" && shift && exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script]);
        command.arg(&netns).arg(node.cgroup());
        let redirect = node.redirect();
        command.arg(redirect.get_program()).args(redirect.get_args()).arg("gc");
        let outcome = Outcome::of(&mut command);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
        scene.assert_closed(&scene.app);
    });
}
