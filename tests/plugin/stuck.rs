//! A pod or a node never gets stuck because of a file or a process that is not as it should be.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Node, kernel_test};
use serde_json::json;

use crate::call::hand_over;
use crate::collect::gc;
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

fn record_of(node: &Node, id: &str) -> PathBuf {
    node.state_dir().join(format!("attachments/{id}.eth0.json"))
}

#[test]
fn a_record_that_cannot_be_read_stops_no_verb() {
    kernel_test(|node| {
        for content in ["", "{", "{\"containerId\":\"bad\"}", "[]", "\u{0}\u{0}"] {
            let (pod, other) = (node.pod("bad"), node.pod("good"));
            let (bad, good) = (Sandbox::new(node, &pod, "bad"), Sandbox::new(node, &other, "good"));
            bad.add();
            good.add();
            let (_sidecar, app) = (pod.sidecar(), pod.app());
            fs::write(record_of(node, "bad"), content).unwrap();
            let listed = Outcome::of(node.redirect().arg("list"));
            assert!(listed.stdout.contains("good") && listed.stderr.contains("bad.eth0.json"), "{listed:?}");
            assert_eq!(good.check().success(), "");
            gc(&good, &[("good", "eth0")]).run().success();
            for verb in ["gc", "upgrade"] {
                let outcome = Outcome::of(node.redirect().arg(verb));
                assert_eq!(outcome.code, Some(0), "{verb}: {outcome:?}");
            }
            // Its pod counts as one without a record: alive, so it stays as it is.
            assert_redirected(&app);
            assert!(node.state_dir().join("unreadable/bad.eth0.json").exists());
            bad.del();
            good.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn the_del_of_a_pod_with_an_unreadable_record_removes_what_it_has() {
    kernel_test(|node| {
        let pod = node.pod("bad");
        let sandbox = Sandbox::new(node, &pod, "bad");
        sandbox.add();
        fs::write(record_of(node, "bad"), "").unwrap();
        sandbox.del();
        assert_nothing_attached(node);
        sandbox.add();
        fs::write(record_of(node, "bad"), "").unwrap();
        assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
        assert!(!node.bpffs().join("redirect-cni").exists());
    });
}

/// A record as each released version wrote it must be understood by all later ones.
#[test]
fn records_of_released_versions_are_understood() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plugin/records");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let text = fs::read(&file).unwrap();
        let record: redirect_user::attach::record::Attachment =
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(record.id.container_id, "c0ffee");
    }
}

#[test]
fn a_lock_that_somebody_holds_ends_the_wait_with_his_name() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("lockTimeoutSeconds", json!(2));
        sandbox.add();
        sandbox.del();
        for held in [node.bpffs().to_owned(), node.state_dir()] {
            let holder = File::open(&held).unwrap();
            holder.lock().unwrap();
            let begin = Instant::now();
            let reply = sandbox.call("ADD").run();
            assert!(begin.elapsed() < Duration::from_secs(30));
            let details = reply.refused(11);
            let own = format!("process {}", std::process::id());
            assert!(details.contains(&own) && details.contains(&held.display().to_string()), "{details}");
            assert!(reply.stderr.contains("waiting for the node's lock"), "{reply:?}");
            // What was prepared without the lock is taken back.
            assert!(!record_of(node, "c0ffee").exists());
            let routes = pod
                .netns()
                .output_of(std::process::Command::new("ip").args(["route", "show", "table", "local"]));
            assert!(!routes.contains("127.72.0.0"), "{routes}");
            drop(holder);
            sandbox.add();
            sandbox.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn what_is_kept_is_for_root_only() {
    kernel_test(|node| {
        // The first call on a node is seldom for a pod with a sidecar.
        fs::remove_dir(node.state_dir()).unwrap();
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let mut plain = Sandbox::new(node, &pod, "plain");
        hand_over(&mut plain.conf, &[]);
        plain.call("ADD").run().success();
        sandbox.add();
        let mut all = vec![node.state_dir()];
        let mut next = 0;
        while let Some(path) = all.get(next).cloned() {
            next += 1;
            all.extend(fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
        for path in &all {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
        for kept in ["outcomes/not_injected", "timings"].map(|name| node.state_dir().join(name)) {
            assert!(all.contains(&kept), "{} is not among {all:?}", kept.display());
        }
        assert!(all.contains(&record_of(node, "c0ffee")), "there is no record in {all:?}");
        sandbox.del();
    });
}

/// Power may fail at every moment: the new text is on the disk before it has the record's name, and the name
/// is on the disk before the call goes on.
#[test]
fn a_record_is_written_so_that_the_old_one_or_the_new_one_survives() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let table = node.dir().join("trace");
        let words = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,/^rename", "-o"];
        let words: Vec<_> =
            words.map(std::ffi::OsString::from).into_iter().chain([table.clone().into()]).collect();
        sandbox.call("ADD").wrapped(&words).run().success();
        let text = fs::read_to_string(&table).expect("strace has written");
        let lines: Vec<_> = text.lines().collect();
        let record = format!("{}\"", record_of(node, "c0ffee").display());
        let renamed = lines.iter().position(|line| line.contains("rename") && line.contains(&record));
        let renamed = renamed.unwrap_or_else(|| panic!("the record is not renamed into its place:\n{text}"));
        let synced = |lines: &[&str], what: &str| {
            lines.iter().any(|line| line.contains("sync(") && line.contains(what) && line.ends_with("= 0"))
        };
        assert!(synced(&lines[..renamed], "/attachments/c0ffee.eth0."), "the text is not synced:\n{text}");
        assert!(synced(&lines[renamed..], "/attachments>"), "the name is not synced:\n{text}");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_pod_is_found_by_its_name_and_an_error_tells_its_cause_once() {
    kernel_test(|node| {
        assert_eq!(Outcome::of(node.redirect().arg("list")).stdout, "nothing is attached\n");
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        for command in [
            &["show", "shop/web-0"][..],
            &["stats", "shop/web-0"],
            &["explain", "shop/web-0", "--inbound", "80"],
        ] {
            let outcome = Outcome::of(node.redirect().args(command));
            assert_eq!(outcome.code, Some(0), "{command:?}: {outcome:?}");
        }
        // It runs until it is told to end.
        let mut trace = node.redirect();
        trace.args(["trace", "shop/web-0"]).stderr(Stdio::null()).stdout(Stdio::null());
        let mut trace = trace.spawn().expect("start redirect");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(trace.try_wait().expect("look at redirect"), None, "trace does not know the pod");
        trace.kill().and_then(|()| trace.wait()).expect("end redirect");
        let wrong = Outcome::of(node.redirect().args(["show", "shop/web-1"]));
        assert!(wrong.stderr.contains("shop/web-1"), "{wrong:?}");
        sandbox.del();
        let outcome = Outcome::of(&mut {
            let mut command = node.redirect_on(node.dir());
            command
                .args(["attach", "--id", "x", "--cgroup", "/nonexistent", "--netns"])
                .arg(pod.netns().path());
            command
        });
        assert_eq!(outcome.stderr.matches("No such file").count(), 1, "{outcome:?}");
    });
}

#[test]
fn processes_outside_the_attached_cgroup_are_seen() {
    kernel_test(|node| {
        let (pod, elsewhere) = (node.pod("web"), node.pod("elsewhere"));
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        assert_eq!(sandbox.check().success(), "");
        // The runtime puts the pod's processes into another cgroup than the one that it named.
        let stray =
            harness::Process::start("stray", pod.netns(), &elsewhere.container("app"), harness::User::APP);
        assert!(sandbox.check().refused(106).contains("not in the cgroup"));
        let listed = Outcome::of(node.redirect().arg("list"));
        assert!(listed.code == Some(1) && listed.stdout.contains("not in the cgroup"), "{listed:?}");
        drop(stray);
        sandbox.del();
        assert_nothing_attached(node);
    });
}
