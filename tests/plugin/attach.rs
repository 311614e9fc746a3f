//! ADD of a pod that is ours, and DEL: the pod's connections go to its sidecar, and afterwards nothing is
//! left.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use harness::cli::Outcome;
use harness::kernel_test;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::call::{PREV_RESULT, STATUS, outcomes};
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

#[test]
fn an_enrolled_pod_is_redirected_in_every_version_of_the_specification() {
    kernel_test(|node| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let pod = node.pod("web");
            let sandbox = Sandbox::new(node, &pod, "c0ffee").with("cniVersion", json!(version));
            sandbox.add();
            let _sidecar = pod.sidecar();
            assert_redirected(&pod.app());
            sandbox.del();
            assert_nothing_attached(node);
        }
        assert_eq!(outcomes(&node.state_dir())["enrolled"], 4);
    });
}

#[test]
fn records_and_pins_are_roots_alone_with_any_umask() {
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let mut files = Vec::new();
        modes(&node.state_dir(), &mut files);
        modes(node.bpffs(), &mut files);
        let (mut records, mut open) = (0, Vec::new());
        for (path, mode) in files {
            let record = path.to_string_lossy().contains("/attachments/");
            records += usize::from(record);
            let allowed = if record { 0o600 } else { 0o755 };
            // The mode of a symbolic link means nothing.
            if !path.is_symlink() && mode & 0o777 & !allowed != 0 {
                open.push(format!("{} {mode:o}", path.display()));
            }
        }
        assert!(records > 0);
        assert_eq!(open, [""; 0]);
        sandbox.del();
    });
    nix::sys::stat::umask(before);
}

/// What is below a folder, with its mode.
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), metadata.permissions().mode()));
        if metadata.is_dir() {
            modes(&entry.path(), found);
        }
    }
}

#[test]
fn the_cgroup_is_found_by_the_pods_uid_alone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let mut sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.conf["runtimeConfig"].as_object_mut().unwrap().remove("cgroupPath");
        sandbox.add();
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        // Without a uid either, there is nothing to go by.
        let nameless = Sandbox { uid: String::new(), ..sandbox.clone() };
        assert!(nameless.call("ADD").run().refused(104).contains("K8S_POD_UID"));
        let stranger = Sandbox { uid: "0badc0de-0000-4000-8000-000000000000".to_owned(), ..sandbox };
        assert!(stranger.call("ADD").run().refused(104).contains("0badc0de-0000-4000-8000-000000000000"));
        assert_nothing_attached(node);
    });
}

#[test]
fn a_cgroup_that_the_runtime_names_and_that_is_not_there_is_made() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let named = node.cgroup().join("kubepods/besteffort/pod5a1f3c2e-0000-4000-8000-00000000abcd");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").in_cgroup(&named);
        // An ADD that fails takes it away again.
        let failing = sandbox.clone().with("bpffsRoot", json!(node.dir()));
        assert!(failing.call("ADD").run().refused(105).contains("is not a bpf file system"));
        assert!(!node.cgroup().join("kubepods/besteffort").exists());
        sandbox.add();
        assert!(named.is_dir());
        // What ends the attachment takes it away.
        sandbox.del();
        assert!(!node.cgroup().join("kubepods/besteffort").exists(), "DEL leaves what ADD made");
        sandbox.add();
        assert_eq!(Outcome::of(node.redirect().args(["detach", "--id", "c0ffee"])).code, Some(0));
        assert!(!node.cgroup().join("kubepods/besteffort").exists(), "detach leaves what ADD made");
        assert_nothing_attached(node);
    });
}

#[test]
fn a_path_outside_kubepods_is_never_made() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let mut sandbox = Sandbox::new(node, &pod, "c0ffee");
        for path in ["/redirect-test-nowhere/pod1", "/", "/../../etc"] {
            sandbox.conf["runtimeConfig"]["cgroupPath"] = json!(path);
            assert!(sandbox.call("ADD").run().refused(104).contains(path));
        }
        assert_nothing_attached_yet(node);
    });
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let no_netns = node.dir().join("file");
        std::fs::write(&no_netns, "").unwrap();
        let table: [(Sandbox, u64, &str); 4] = [
            (sandbox.clone().with("bpffsRoot", json!(node.dir())), 105, "is not a bpf file system"),
            (sandbox.clone().with("stateDir", json!("/proc/nowhere")), 105, "/proc/nowhere"),
            (Sandbox { netns: Some(no_netns.clone()), ..sandbox.clone() }, 105, "file"),
            (Sandbox { netns: Some(PathBuf::from("/nonexistent")), ..sandbox.clone() }, 8, "/nonexistent"),
        ];
        for (failing, code, part) in table {
            let details = failing.call("ADD").run().refused(code);
            assert!(details.contains(part), "{details}");
            failing.call("DEL").run();
            assert_nothing_attached_yet(node);
        }
        sandbox.call("ADD").unprivileged().run().error();
        assert_nothing_attached_yet(node);
    });
}

#[test]
fn the_annotations_become_the_policy() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee")
            .annotated(&[
                ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.96.0.0/12,fd00:96::/112"),
                ("traffic.sidecar.istio.io/excludeOutboundPorts", "25"),
                ("traffic.sidecar.istio.io/includeInboundPorts", "8080"),
                ("traffic.sidecar.istio.io/excludeInboundPorts", "3306"),
            ])
            .with("proxy", json!({ "uid": 2000, "gid": 2001, "dnsPort": 15054 }))
            .with("dnsCapture", json!(true));
        sandbox.add();
        let list = node.list();
        let record = &list[0];
        let policy = &record["policy"];
        assert_eq!(policy["excludeOutboundIpRanges"], json!(["10.96.0.0/12", "fd00:96::/112"]), "{policy}");
        assert_eq!(policy["excludeOutboundPorts"], json!([25]), "{policy}");
        assert_eq!(policy["includeInboundPorts"], json!({ "list": [8080] }), "{policy}");
        assert_eq!(policy["excludeInboundPorts"], json!([3306, 15020, 15021, 15090]), "{policy}");
        assert_eq!(policy["dnsCapture"], true, "{policy}");
        let proxy = &policy["proxy"];
        assert_eq!(
            (&proxy["uid"], &proxy["gid"], &proxy["dnsPort"]),
            (&json!(2000), &json!(2001), &json!(15054))
        );
        assert_eq!(record["pod"], json!({ "namespace": "shop", "name": "web-0", "uid": sandbox.uid }));
        assert_eq!(record["network"], "mesh");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn what_the_agent_says_about_the_proxy_reaches_the_policy() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee")
            .with("podSource", json!("kubernetes"))
            .with("agentSocket", json!(node.dir().join("agent.sock")));
        let _agent = Agent::start(node.dir());
        let manifest = json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": sandbox.uid,
                "annotations": { STATUS.0: STATUS.1 },
            },
            "spec": {
                "initContainers": [{
                    "name": "istio-proxy", "restartPolicy": "Always", "args": ["proxy", "sidecar"],
                    "env": [{ "name": "ISTIO_META_DNS_CAPTURE", "value": "true" }],
                    "securityContext": { "runAsUser": 2000, "runAsGroup": 2001 },
                }],
                "containers": [{ "name": "web" }],
            },
        });
        std::fs::write(node.dir().join("pods/web-0.json"), manifest.to_string()).unwrap();
        sandbox.add();
        let list = node.list();
        let policy = &list[0]["policy"];
        assert_eq!(
            (&policy["proxy"]["uid"], &policy["proxy"]["gid"]),
            (&json!(2000), &json!(2001)),
            "{policy}"
        );
        assert_eq!(policy["dnsCapture"], true, "{policy}");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn groups_of_the_environment_reach_the_policy() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let call = sandbox.call("ADD").env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "root,202");
        assert_eq!(call.run().success(), PREV_RESULT);
        let list: Value = node.list();
        assert_eq!(list[0]["policy"]["ownerGroups"], json!({ "allBut": [0, 202] }), "{list}");
        sandbox.del();
    });
}

/// As [`assert_nothing_attached`], where the programs may not even have been installed.
#[track_caller]
fn assert_nothing_attached_yet(node: &harness::Node) {
    assert_eq!(node.attached(), Vec::<String>::new());
    let pins = node.bpffs().join("redirect-cni");
    if pins.exists() {
        assert_nothing_attached(node);
    }
}
