//! CHECK, GC and STATUS of a node with pods on it.

use std::time::{Duration, Instant};

use harness::kernel_test;
use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT};
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

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
