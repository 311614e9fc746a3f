//! What an operator sees of the guard.

use std::process::Command;

use harness::cli::Outcome;
use harness::{Event, Family, Node, Pod, Process, User, kernel_test};

use crate::{PORT, Scene, dial};

/// What `redirect list` says of the one pod. It fails for a pod with drift.
pub(crate) fn drift(node: &Node) -> String {
    let outcome = Outcome::of(node.redirect().args(["list", "--output", "json"]));
    let list: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let drift = list[0]["drift"].to_string();
    assert_eq!(outcome.code, Some(i32::from(drift != "[]")), "{outcome:?}");
    drift
}

fn remove(pod: &Pod, what: &str) {
    let _ = pod.netns().output_of(Command::new("tc").args(what.split(' ')));
}

#[test]
fn a_filter_that_somebody_removes_is_drift() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let shown = node.json(&["show", scene.pod.name()]);
        let filters = shown[0]["filters"].as_array().unwrap().clone();
        let names: Vec<_> = filters.iter().map(|filter| filter["filter"].as_str().unwrap()).collect();
        assert_eq!(names, ["guard_egress", "guard_ingress"], "{filters:?}");
        assert!(filters.iter().all(|filter| filter["interface"] == "eth0" && filter["programId"].is_u64()));
        assert_eq!(drift(node), "[]");
        for (what, gone) in [
            ("filter del dev eth0 egress", "the filter guard_egress on eth0 is gone"),
            ("qdisc del dev eth0 clsact", "the filter guard_ingress on eth0 is gone"),
        ] {
            remove(&scene.pod, what);
            assert!(drift(node).contains(gone), "{}", drift(node));
            // Attached again it is there again.
            node.attach(&scene.pod, &[]);
            assert_eq!(drift(node), "[]");
        }
    });
}

#[test]
fn an_interface_that_comes_later_is_guarded_when_the_pod_is_attached_again() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        crate::cable(&scene.pod, &scene.peer);
        node.attach(&scene.pod, &[]);
        let shown = node.json(&["show", scene.pod.name()]);
        let interfaces: Vec<_> = shown[0]["filters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|filter| filter["interface"].as_str().unwrap())
            .collect();
        assert_eq!(interfaces, ["eth0", "eth0", "net1", "net1"]);
        assert_eq!(
            dial(&scene.server, "10.99.0.2:8080".parse().unwrap()).map(|seen| seen.listener),
            Ok(15006)
        );
        node.attach(&scene.pod, &["--exclude-interfaces", "net1"]);
        let direct = dial(&scene.server, "10.99.0.2:8080".parse().unwrap());
        assert_eq!(direct.map(|seen| seen.listener), Ok(PORT));
        assert_eq!(drift(node), "[]");
        assert_eq!(crate::guarded(node, &scene.pod), 0);
    });
}

#[test]
fn every_refusal_is_traced_and_counted_by_reason() {
    kernel_test(|node| {
        use std::io::{BufRead as _, BufReader};
        let scene = Scene::new(node, &[]);
        let elsewhere = node.pod("elsewhere");
        let stray = Process::start("stray", scene.pod.netns(), &elsewhere.container("app"), User::APP);
        let mut command = node.redirect();
        command.args(["--output", "json", "trace", scene.pod.name()]).stdout(std::process::Stdio::piped());
        let mut trace = command.spawn().expect("start redirect trace");
        let mut lines = BufReader::new(trace.stdout.take().unwrap()).lines();
        // The reader has set the pod's deadline when a connection of the application's is shown.
        let shown = std::thread::spawn(move || {
            lines.find_map(|line| line.ok().filter(|line| line.contains("\"guard\""))).unwrap_or_default()
        });
        for _ in 0..20 {
            for family in Family::ALL {
                let _ = dial(&stray, scene.peer.at(family, PORT));
            }
            if shown.is_finished() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let finished = shown.is_finished();
        let _ = trace.kill();
        let _ = trace.wait();
        assert!(finished, "nothing of the guard's was traced");
        let line = shown.join().unwrap();
        for part in
            ["\"hook\":\"guard\"", "\"verdict\":\"dropped\"", "\"uid\":1000", "\"rule\":\"included-range\""]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(node.count(&scene.pod, Event::GuardOutbound) >= 2);
    });
}

/// Of a pod whose record and pins are lost nothing tells that it was there, but for its filters. As long as
/// it has a process its place stays taken; then `gc` frees it.
#[test]
fn the_place_of_a_pod_that_nothing_names_is_freed_when_its_processes_are_gone() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let taken = node.guarded_pods();
        assert_eq!(taken.len(), 1);
        let lose = |folder: std::path::PathBuf| {
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
        };
        lose(node.state_dir().join("attachments"));
        lose(node.bpffs().join(format!("redirect-cni/v{}/pods", redirect_common::ABI_VERSION)));
        let collect = || assert_eq!(Outcome::of(node.redirect().arg("gc")).code, Some(0));
        // Its entries in the other maps go, so that no policy is left, and it is closed.
        collect();
        assert_eq!(node.guarded_pods(), taken);
        for family in Family::ALL {
            let refused = dial(&scene.app, scene.peer.at(family, PORT)).map(|seen| seen.listener);
            assert_eq!(refused, Err(harness::Errno::ECONNREFUSED));
        }
        drop(scene);
        collect();
        assert_eq!(node.guarded_pods(), Vec::<u64>::new());
    });
}
