//! STATUS tries what an ADD needs, and tells what an operator should know: room in the maps, processes
//! outside of the cgroup that was attached, an agent that is away, programs of another build.

use std::process::Command;

use harness::cli::Outcome;
use harness::kernel_test;
use serde_json::json;

use crate::collect::status;
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

#[test]
fn a_full_map_makes_a_node_unready_and_doctor_says_which() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let doctor = || Outcome::of(node.redirect().arg("doctor"));
        assert!(doctor().stdout.contains("the fullest is"), "{:?}", doctor());
        for (map, limit) in [("PODS", 4096), ("OWN", 65_536), ("CLAIMS", 4096), ("GUARD", 16_383)] {
            let filled = node.fill_map(map);
            let details = status(&sandbox).run().refused(50);
            let full = format!("{limit} of {limit} entries");
            for part in [map, "is full", &full, "redirect gc"] {
                assert!(details.contains(part), "{part}: {details}");
            }
            let outcome = doctor();
            assert!(outcome.code == Some(1) && outcome.stdout.contains(&full), "{outcome:?}");
            drop(filled);
            assert_eq!(status(&sandbox).run().success(), "");
            assert!(!doctor().stdout.contains(&full), "{:?}", doctor());
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn the_pod_with_most_entries_of_a_full_map_is_named() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        node.fill_own_addresses(node.list()[0]["cookie"].as_u64().expect("a cookie"));
        let details = status(&sandbox).run().refused(50);
        for part in ["OWN is full", "pod shop/web-0 (", "has most of them, 65536"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        node.empty_own_addresses();
        sandbox.del();
    });
}

#[test]
fn processes_outside_of_the_cgroup_make_a_node_unready() {
    kernel_test(|node| {
        let (pod, elsewhere) = (node.pod("web"), node.pod("elsewhere"));
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        assert_eq!(status(&sandbox).run().success(), "");
        let stray =
            harness::Process::start("stray", pod.netns(), &elsewhere.container("app"), harness::User::APP);
        let details = status(&sandbox).run().refused(51);
        for part in ["pod shop/web-0", "in clear", "cgroupPath", "redirect list"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        assert!(!details.contains("redirect repair"), "a repair does not help: {details}");
        drop(stray);
        assert_eq!(status(&sandbox).run().success(), "");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn what_an_add_would_lack_makes_a_node_unready() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        assert_eq!(status(&sandbox).run().success(), "");
        for (key, value, part) in [
            ("cgroupRoot", "/proc", "is not a cgroup v2 file system"),
            ("stateDir", "/proc/nowhere", "records of attachments are kept there"),
        ] {
            let lacking = sandbox.clone().with(key, json!(value));
            let details = status(&lacking).run().refused(50);
            assert!(details.contains(value) && details.contains(part), "{key}: {details}");
        }
        assert_eq!(status(&sandbox).run().success(), "");
    });
}

/// bpffs is unmounted, as by a clean-up job, and mounted again, as STATUS advises: the pods that run have no
/// links until a repair, and every command says so until then.
#[test]
fn a_bpffs_that_was_mounted_again_is_ready_only_when_running_pods_are_attached_again() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        node.unmount_bpffs();
        let details = status(&sandbox).run().refused(51);
        for part in ["is not a bpf file system", "1 pods are attached", "send in clear", "redirect repair"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(node.bpffs()).status().unwrap();
        assert!(mounted.success());
        let details = status(&sandbox).run().refused(51);
        assert!(details.contains("send in clear") && details.contains("redirect repair"), "{details}");
        let tool = |verb: &str| Outcome::of(node.redirect().arg(verb));
        for verb in ["list", "doctor"] {
            let outcome = tool(verb);
            assert!(outcome.code == Some(1) && outcome.stdout.contains("gone"), "{verb}: {outcome:?}");
        }
        // A collection is not for this, and does not say that all is well.
        assert_eq!(tool("gc").stdout, "nothing to collect\n");
        assert_eq!(status(&sandbox).run().error()["code"], 51);
        // An upgrade has nothing to replace, and names the command that helps.
        let upgraded = tool("upgrade");
        assert!(upgraded.code == Some(1) && upgraded.stderr.contains("`redirect install`"), "{upgraded:?}");
        let installed = tool("install");
        assert!(installed.code == Some(0) && installed.stdout.contains("shop/web-0"), "{installed:?}");
        assert_redirected(&app);
        assert_eq!(status(&sandbox).run().success(), "");
        assert_eq!(sandbox.check().success(), "");
        assert_eq!(tool("list").code, Some(0));
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn an_agent_that_is_away_is_told_where_one_is_needed() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let reply = status(&sandbox).run();
        assert!(reply.success().is_empty() && !reply.stderr.contains("agent"), "{reply:?}");
        let socket = node.dir().join("agent.sock");
        let asking = sandbox.with("podSource", json!("kubernetes")).with("agentSocket", json!(socket));
        // No reason to say no: a node that is not ready loses its pods, the agent's own among them.
        let reply = status(&asking).run();
        assert!(reply.success().is_empty() && reply.stderr.contains("agent.sock"), "{reply:?}");
        let _agent = crate::agent::Agent::start(node.dir());
        let reply = status(&asking).run();
        assert!(reply.success().is_empty() && !reply.stderr.contains("agent"), "{reply:?}");
    });
}
