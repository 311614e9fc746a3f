//! What was lost on a node and is made again: pins, all of them or one, map entries, routes, the programs
//! themselves.

use std::fs;
use std::path::PathBuf;

use harness::cli::Outcome;
use harness::{Family, Node, Pod, kernel_test};
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::sys;
use serde_json::json;

use crate::call::Call;
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected, pins};

/// A connection from outside reaches the sidecar's listener.
fn assert_inbound(node: &Node, pod: &Pod, name: &str) {
    let client = node.pod(name);
    assert_eq!(client.app().connect(pod.at(Family::V4, 80)).unwrap().seen().listener, 15006);
    assert_eq!(client.app().connect(pod.at(Family::V6, 80)).unwrap().seen().listener, 15006);
}

fn status(sandbox: &Sandbox) -> crate::call::Reply {
    let conf = sandbox.clone().with("cniVersion", json!("1.1.0")).conf;
    Call::new("STATUS").stdin(conf.to_string()).run()
}

/// How often a hook of ours runs for the pod.
fn programs_on(pod: &Pod, hook: Hook) -> usize {
    sys::programs_on(fs::File::open(pod.cgroup()).unwrap(), hook).unwrap().0.len()
}

fn lose_all_pins(node: &Node) {
    fs::remove_dir_all(node.bpffs().join("redirect-cni")).unwrap();
}

#[test]
fn when_all_pins_are_lost_status_says_so_and_repair_attaches_running_pods_again() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        lose_all_pins(node);
        let listed = Outcome::of(node.redirect().arg("list"));
        assert_eq!(listed.code, Some(1), "{listed:?}");
        assert!(listed.stdout.contains("links are gone"), "{listed:?}");
        let details = status(&sandbox).refused(51);
        assert!(details.contains("send in clear") && details.contains("redirect repair"), "{details}");
        let outcome = Outcome::of(node.redirect().arg("repair"));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains("shop/web-0"), "{outcome:?}");
        assert_redirected(&app);
        // The sidecar listened all the time: its sockets were fetched.
        assert_inbound(node, &pod, "client");
        assert_eq!(status(&sandbox).success(), "");
        assert_eq!(sandbox.check().success(), "");
        let again = Outcome::of(node.redirect().arg("repair"));
        assert_eq!(again.stdout, "nothing to repair\n");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn add_and_check_of_any_pod_repair_the_node() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("web"), node.pod("other"));
        let (first, second) = (Sandbox::new(node, &pod, "one"), Sandbox::new(node, &other, "two"));
        first.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        lose_all_pins(node);
        second.add();
        assert_redirected(&app);
        assert_eq!(first.check().success(), "");
        // One pod's pins only.
        fs::remove_dir_all(pins(node).container("one")).unwrap();
        let third = Sandbox { id: "three".into(), ..second.clone() };
        third.add();
        assert_redirected(&app);
        lose_all_pins(node);
        assert!(second.check().refused(106).contains("repaired now"));
        assert_redirected(&app);
        assert_inbound(node, &pod, "client");
        for sandbox in [first, second, third] {
            assert_eq!(sandbox.check().success(), "");
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

#[test]
fn an_installation_that_lost_a_pin_stops_nothing_and_is_made_whole() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let lost: [fn(&Node) -> PathBuf; 3] = [
            |node| pins(node).map("OWN"),
            |node| pins(node).program(Hook::Connect6),
            |node| pins(node).stamp(),
        ];
        for pin in lost {
            sandbox.add();
            fs::remove_file(pin(node)).unwrap();
            sandbox.del();
            assert_eq!(node.attached(), Vec::<String>::new());
            sandbox.add();
            let (_sidecar, app) = (pod.sidecar(), pod.app());
            assert_redirected(&app);
            fs::remove_file(pin(node)).unwrap();
            let doctor = Outcome::of(node.redirect().arg("doctor"));
            assert_eq!(doctor.code, Some(1), "{doctor:?}");
            let outcome = Outcome::of(node.redirect().arg("install"));
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            assert!(outcome.stdout.contains("installed below"), "{outcome:?}");
            assert_redirected(&app);
            assert_inbound(node, &pod, "client");
            assert_eq!(sandbox.check().success(), "");
            sandbox.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn a_removal_that_dies_leaves_what_the_next_add_makes_whole() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        sandbox.del();
        let killed = Outcome::of(node.redirect().arg("uninstall").env("REDIRECT_FAULT", "discard-renamed"));
        assert_eq!(killed.code, None, "{killed:?}");
        sandbox.add();
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn an_upgrade_brings_pods_without_records_along_and_no_hook_runs_twice() {
    kernel_test(|node| {
        let (pod, new_netns) = (node.pod("web"), node.pod("new"));
        let old = Sandbox::new(node, &pod, "old");
        old.add();
        fs::remove_dir_all(node.state_dir().join("attachments")).unwrap();
        assert_eq!(Outcome::of(node.redirect().arg("upgrade")).code, Some(0));
        let new = old.again("new", new_netns.netns().path());
        new.add();
        for hook in [Hook::Connect4, Hook::SockOps, Hook::OriginalDst] {
            assert_eq!(programs_on(&pod, hook), 1, "{hook}");
        }
        old.del();
        assert_eq!(new.check().success(), "");
        new.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn links_whose_pins_are_lost_are_found_again_and_do_not_run_twice() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        // Somebody holds the links: another mount of bpffs, or an agent.
        let folder = pins(node).container("c0ffee").join("eth0");
        let held: Vec<_> =
            Hook::ALL.iter().flat_map(|hook| sys::obj_get(&folder.join(hook.name()))).collect();
        lose_all_pins(node);
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        assert_eq!(Outcome::of(node.redirect().arg("repair")).code, Some(0));
        assert_eq!(programs_on(&pod, Hook::Connect4), 1);
        assert_redirected(&app);
        assert_inbound(node, &pod, "client");
        drop(held);
        assert_redirected(&app);
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn programs_of_an_older_version_are_told_and_the_next_add_upgrades_them() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("web"), node.pod("other"));
        let (first, second) = (Sandbox::new(node, &pod, "one"), Sandbox::new(node, &other, "two"));
        first.add();
        let stamp = pins(node).stamp();
        let now = fs::read_link(&stamp).unwrap();
        let words: Vec<_> = now.to_str().unwrap().split(' ').collect();
        fs::remove_file(&stamp).unwrap();
        std::os::unix::fs::symlink(format!("0.0.1 0123456789abcdef {}", words[2]), &stamp).unwrap();
        let doctor = Outcome::of(node.redirect().arg("doctor"));
        assert!(doctor.stdout.contains("version 0.0.1"), "{doctor:?}");
        second.add();
        assert_eq!(fs::read_link(&stamp).unwrap(), now);
        assert_eq!(first.check().success(), "");
        for sandbox in [first, second] {
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

/// The pins of this version under the name of another one.
fn rename_version(node: &Node, from: u32, to: u32) {
    let folder = |version: u32| node.bpffs().join(format!("redirect-cni/v{version}"));
    fs::rename(folder(from), folder(to)).unwrap();
}

#[test]
fn pods_of_another_abi_version_are_deleted_collected_and_brought_over() {
    kernel_test(|node| {
        let own = redirect_common::ABI_VERSION;
        for other in [own - 1, own + 1] {
            let pod = node.pod("web");
            let sandbox = Sandbox::new(node, &pod, "c0ffee");
            // DEL by a version that did not make the pins.
            sandbox.add();
            rename_version(node, own, other);
            sandbox.del();
            let left = node.bpffs().join(format!("redirect-cni/v{other}/pods"));
            assert_eq!(fs::read_dir(left).unwrap().count(), 0);
            assert_eq!(programs_on(&pod, Hook::Connect4), 0);
            assert_eq!(Outcome::of(node.redirect().arg("gc")).code, Some(0));
            // A running pod is brought over.
            sandbox.add();
            rename_version(node, own, other);
            let (_sidecar, app) = (pod.sidecar(), pod.app());
            let outcome = Outcome::of(node.redirect().arg("upgrade"));
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            assert_redirected(&app);
            assert_inbound(node, &pod, "client");
            assert_eq!(sandbox.check().success(), "");
            assert_eq!(programs_on(&pod, Hook::Connect4), 1);
            assert!(!node.bpffs().join(format!("redirect-cni/v{other}")).exists());
            sandbox.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn every_entry_and_route_is_compared_and_repaired() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let ranges = "traffic.sidecar.istio.io/includeOutboundIPRanges";
        let sandbox = Sandbox::new(node, &pod, "c0ffee").annotated(&[(ranges, "192.0.2.0/24,2001:db8::/32")]);
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let entries = node.map_entries();
        type Fault = fn(&Node, &Pod);
        let faults: [(&str, Fault); 4] = [
            ("entries", |node, _| {
                let path = pins(node).map("RANGES");
                let map = sys::RawMap::open(&path).unwrap().unwrap();
                map.remove(&map.keys().unwrap()[0]).unwrap();
            }),
            ("local route", |_, pod| pod.netns().ip("route del local 127.64.0.0/10 table local")),
            ("::6", |_, pod| pod.netns().ip("address del ::6/128 dev lo")),
            ("local route", |_, pod| pod.netns().ip("link set lo down\nlink set lo up")),
        ];
        for (named, break_it) in faults {
            break_it(node, &pod);
            let listed = Outcome::of(node.redirect().arg("list"));
            assert!(listed.code == Some(1) && listed.stdout.contains(named), "{named}: {listed:?}");
            // CHECK mends what the pod itself may change, and tells of the rest.
            let reply = sandbox.check();
            assert!(reply.code == Some(0) || reply.refused(106).contains("repaired now"), "{reply:?}");
            assert_eq!(sandbox.check().success(), "", "{named}");
            assert_redirected(&app);
            assert_eq!(node.map_entries()[..4], entries[..4]);
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}
