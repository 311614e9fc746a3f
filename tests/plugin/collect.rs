//! CHECK, GC and STATUS of a node with pods on it.

use std::process::Command;
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Family, Node, any, binary, crowded, kernel_test};
use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT};
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected, pins};

pub(crate) fn gc(sandbox: &Sandbox, valid: &[(&str, &str)]) -> Call {
    let mut conf = sandbox.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    let entry = |(id, ifname): &(&str, &str)| json!({ "containerID": id, "ifname": ifname });
    conf["cni.dev/valid-attachments"] = valid.iter().map(entry).collect::<Value>();
    Call::new("GC")
        .without("CNI_CONTAINERID")
        .without("CNI_IFNAME")
        .without("CNI_NETNS")
        .stdin(conf.to_string())
}

pub(crate) fn status(sandbox: &Sandbox) -> Call {
    let mut conf = sandbox.conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    Call::new("STATUS").stdin(conf.to_string())
}

/// `redirect gc` by somebody who has another state directory, as after a change of the configuration.
pub(crate) fn gc_elsewhere(node: &Node) -> Command {
    let mut command = Command::new(binary("redirect"));
    command.arg("gc").arg("--bpffs").arg(node.bpffs());
    command.arg("--state-dir").arg(node.dir().join("other-state"));
    command
}

#[test]
fn check_finds_what_has_drifted() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        // Enrolled by the decision, and nothing is there.
        assert!(sandbox.check().refused(3).contains("c0ffee"));
        sandbox.add();
        assert_eq!(sandbox.check().success(), "");
        let pin = node
            .bpffs()
            .join(format!("redirect-cni/v{}/pods/c0ffee/eth0/connect4", redirect_common::ABI_VERSION));
        std::fs::remove_file(&pin).unwrap();
        assert!(sandbox.check().refused(106).contains("connect4"));
        // ADD mends it.
        sandbox.add();
        assert_eq!(sandbox.check().success(), "");
        sandbox.del();
        // A pod that is not ours has nothing to check.
        let plain = sandbox.with("excludeNamespaces", json!(["shop"]));
        assert_eq!(plain.check().success(), "");
        assert_eq!(plain.call("ADD").run().success(), PREV_RESULT);
        assert_nothing_attached(node);
    });
}

#[test]
fn gc_keeps_what_is_valid_and_what_is_not_its_own() {
    kernel_test(|node| {
        let pods = ["valid", "stale", "other", "by-hand"].map(|name| node.pod(name));
        let [valid, stale, other, by_hand] = &pods;
        let sandboxes = [
            Sandbox::new(node, valid, "valid"),
            Sandbox::new(node, stale, "stale"),
            Sandbox::new(node, other, "other").with("name", json!("another-network")),
        ];
        sandboxes.iter().for_each(Sandbox::add);
        node.attach(by_hand, &[]);
        assert_eq!(gc(&sandboxes[0], &[("valid", "eth0"), ("stale", "net7")]).run().success(), "");
        let mut attached = node.attached();
        attached.sort();
        assert_eq!(attached, ["by-hand", "other", "valid"]);
        let sidecar = valid.sidecar();
        assert_redirected(&valid.app());
        drop(sidecar);
        // Without the list nothing may be removed.
        let mut conf = sandboxes[0].conf.clone();
        conf["cniVersion"] = json!("1.1.0");
        assert!(
            Call::new("GC").stdin(conf.to_string()).run().refused(7).contains("cni.dev/valid-attachments")
        );
        assert_eq!(node.attached().len(), 3);
        gc(&sandboxes[0], &[]).run().success();
        gc(&sandboxes[2], &[]).run().success();
        node.detach(by_hand);
        assert_nothing_attached(node);
    });
}

#[test]
fn gc_removes_what_belongs_to_pods_that_are_gone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("name", json!("another-network"));
        sandbox.add();
        let living = node.pod("living");
        let living_sandbox = Sandbox::new(node, &living, "living");
        living_sandbox.add();
        drop(pod);
        gc(&living_sandbox, &[("living", "eth0")]).run().success();
        assert_eq!(node.attached(), ["living"]);
        living_sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn gc_spares_a_living_pod_whose_record_is_lost() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        std::fs::remove_dir_all(node.state_dir().join("attachments")).unwrap();
        gc(&sandbox, &[]).run().success();
        let sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        drop(sidecar);
        // When the pod is gone, so are its pins; the kernel takes a namespace apart some time after its last
        // process.
        drop(pod);
        let deadline = Instant::now() + Duration::from_secs(40);
        while node.map_entries().iter().any(|(_, entries)| *entries > 0) {
            assert!(Instant::now() < deadline, "left: {:?}", node.map_entries());
            gc(&sandbox, &[]).run().success();
        }
        assert_nothing_attached(node);
    });
}

/// What programs have written for a pod goes with the pod, also where nothing is left that names it: no
/// record, no pins.
#[test]
fn gc_finds_what_a_pod_without_record_and_pins_has_in_every_table() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("dnsCapture", json!(true));
        sandbox.add();
        let (app, proxy) = (pod.app(), pod.proxy());
        let listener = proxy.tcp(Family::V4);
        // It waits for data before it makes a socket: the handshakes stay under way.
        listener.set_option(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30).expect("wait for data");
        listener.bind(any(Family::V4, 15001)).expect("bind");
        listener.listen().expect("listen");
        let ephemeral = app.listen(any(Family::V4, 40_001)).expect("listen");
        assert_eq!(app.open_many(&crowded(Family::V4), 20).error, None);
        for map in ["PODS", "STATS", "DESTINATIONS", "HANDOFF", "LISTENING", "CLAIMS", "OWN"] {
            assert!(node.entries_of(map) > 0, "nothing is in {map}");
        }
        std::fs::remove_dir_all(pins(node).pods().join("c0ffee")).expect("remove the pins");
        std::fs::remove_dir_all(node.state_dir().join("attachments")).expect("remove the record");
        drop((listener, ephemeral, app, proxy));
        drop(pod);
        let collected = Outcome::of(node.redirect().arg("gc"));
        assert!(collected.stdout.contains("removed entries of network namespace"), "{collected:?}");
        let left: Vec<_> = node.map_entries().into_iter().filter(|(_, entries)| *entries > 0).collect();
        assert_eq!(left, []);
    });
}

/// The entry was taken out of the node's configuration first, so that no DEL comes when the pods go.
#[test]
fn list_says_what_pods_are_that_went_without_a_del_and_gc_collects_them() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        drop(pod);
        let listed = Outcome::of(node.redirect().arg("list"));
        assert_eq!(listed.code, Some(1), "{listed:?}");
        for part in ["c0ffee", "shop/web-0", "the pod is gone", "redirect gc"] {
            assert!(listed.stdout.contains(part), "{part}: {listed:?}");
        }
        let collected = Outcome::of(node.redirect().arg("gc"));
        for part in ["removed c0ffee, pod shop/web-0", "its cgroup is gone"] {
            assert!(collected.stdout.contains(part), "{part}: {collected:?}");
        }
        assert_eq!(Outcome::of(node.redirect().arg("list")).stdout, "nothing is attached\n");
        assert_nothing_attached(node);
    });
}

#[test]
fn status_says_whether_an_add_would_work() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        assert_eq!(status(&sandbox).run().success(), "");
        let unmounted = sandbox.clone().with("bpffsRoot", json!(node.dir()));
        assert!(status(&unmounted).run().refused(50).contains("is not a bpf file system"));
        if nix::unistd::geteuid().is_root() {
            status(&sandbox).unprivileged().run().refused(50);
        }
        // With pods attached and their links gone, connectivity is in question.
        sandbox.add();
        status(&unmounted).run().refused(51);
        assert_eq!(status(&sandbox).run().success(), "");
        // An agent that is away does not make a node unready.
        let kubernetes = sandbox.clone().with("podSource", json!("kubernetes"));
        assert_eq!(status(&kubernetes).run().success(), "");
        sandbox.del();
        assert_nothing_attached(node);
    });
}
