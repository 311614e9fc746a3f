//! `redirect verify`: green on a node that is in order, red with a name for each fault, and nothing stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::neighbour::{CONNECT4, answer, load};
use harness::{Node, binary, kernel_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redirect_user::kernel::sys;
use serde_json::Value;

/// `redirect verify` with the test's branch of the cgroup tree.
fn verify(node: &Node) -> Command {
    let mut command = node.redirect();
    command.arg("verify").arg("--cgroup-root").arg(node.cgroup());
    command
}

/// Its JSON.
fn report(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Names and families of the trials that ended so.
fn ended(report: &Value, state: &str) -> Vec<String> {
    let trials = report["trials"].as_array().expect("a list");
    let meant = trials.iter().filter(|trial| trial["state"] == state);
    meant.map(|trial| format!("{} {}", trial["name"], trial["family"]).replace('"', "")).collect()
}

fn faults(report: &Value) -> String {
    report["faults"].to_string()
}

/// No cgroup, no attachment, no pin of a scratch pod.
fn assert_nothing_stays(node: &Node) {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let cgroups: Vec<_> = entries(node.cgroup())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("redirect-verify"))
        .collect();
    assert_eq!(cgroups, [""; 0], "cgroups stay");
    assert_eq!(node.attached(), [""; 0], "an attachment stays");
}

fn installed(node: &Node) -> bool {
    node.bpffs().join("redirect-cni").exists()
}

#[test]
fn a_node_in_order_passes_and_nothing_stays() {
    kernel_test(|node| {
        let outcome = Outcome::of(&mut verify(node));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("24 of 24 in "), "{}", outcome.stdout);
        assert_nothing_stays(node);
        assert!(!installed(node), "programs stay that were not there before");
    });
}

#[test]
fn what_is_installed_and_attached_is_left_alone_and_the_run_is_short() {
    kernel_test(|node| {
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        // Others may keep the machine busy: the shortest of some runs says what it takes.
        let times = (0..5).map(|_| {
            let outcome = Outcome::of(verify(node).args(["-o", "json"]));
            let report = report(&outcome);
            assert_eq!((outcome.code, &report["passed"]), (Some(0), &Value::Bool(true)), "{report}");
            assert_eq!(ended(&report, "passed").len(), 24, "{report}");
            report["milliseconds"].as_u64().expect("a number")
        });
        let times: Vec<_> = times.collect();
        println!("24 of 24 in {times:?} ms");
        assert!(times.iter().min() < Some(&3000), "it took {times:?} ms");
        assert_eq!(node.attached(), ["web"]);
        let seen =
            pod.app().connect("192.0.2.10:80".parse().expect("an address")).expect("the sidecar").seen();
        assert_eq!(seen.listener, 15001);
    });
}

#[test]
fn without_ipv6_its_trials_are_not_tried_and_that_is_no_failure() {
    kernel_test(|node| {
        // The kernel's answer is replaced on its way: a node that was booted with ipv6.disable=1 has no such
        // folder.
        let run = |format: &str| {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-P", "/proc/sys/net/ipv6/conf"]);
            command.args(["-e", "inject=open,openat:error=ENOENT"]).arg(binary("redirect"));
            command.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir());
            command.args(["verify", "-o", format, "--cgroup-root"]).arg(node.cgroup());
            Outcome::of(&mut command)
        };
        let text = run("text");
        assert_eq!(text.code, Some(0), "{text:?}");
        let sum = "12 not tried: IPv6 is switched off on this node";
        assert!(text.stdout.contains("12 of 12 in ") && text.stdout.contains(sum), "{}", text.stdout);
        let junit = run("junit");
        assert!(junit.stdout.contains(r#"tests="24" failures="0" skipped="12""#), "{}", junit.stdout);
        assert_nothing_stays(node);
    });
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    kernel_test(|node| {
        let runs: Vec<_> =
            (0..3).map(|_| verify(node).stdout(Stdio::piped()).spawn().expect("the tool starts")).collect();
        for run in runs {
            let output = run.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        assert_nothing_stays(node);
    });
}

#[test]
fn junit_has_every_trial_and_every_failure() {
    kernel_test(|node| {
        let good = Outcome::of(verify(node).args(["-o", "junit"]));
        assert_eq!(good.code, Some(0), "{good:?}");
        assert_eq!(good.stdout.matches("<testcase ").count(), 24, "{}", good.stdout);
        assert!(good.stdout.contains(r#"tests="24" failures="0" skipped="0""#), "{}", good.stdout);
        let bad = Outcome::of(node.redirect().args(["verify", "-o", "junit", "--cgroup-root", "/tmp"]));
        assert_eq!(bad.code, Some(1), "{bad:?}");
        assert!(bad.stdout.contains(r#"tests="25" failures="1" skipped="24""#), "{}", bad.stdout);
    });
}

/// A run that has stopped itself right after the scratch pod was attached.
struct Paused {
    child: Child,
    /// The folder of the scratch pod's pins.
    pins: PathBuf,
    /// Its record.
    record: Value,
}

impl Paused {
    fn start(node: &Node) -> Paused {
        let child = verify(node)
            .args(["-o", "json"])
            .env(redirect_user::node::fault::PAUSE_VARIABLE, "verify-attached")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tool starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).expect("it runs").contains(") T ") {
            assert!(Instant::now() < deadline, "the run does not come to its pause");
            std::thread::sleep(Duration::from_millis(5));
        }
        let list = node.list();
        let record = list.as_array().expect("a list").last().expect("the scratch pod is attached").clone();
        let id = record["containerId"].as_str().expect("an id");
        let mut folders = fs::read_dir(node.bpffs().join("redirect-cni")).expect("pins").flatten();
        let pins = folders.find_map(|version| {
            let folder = version.path().join("pods").join(id).join("eth0");
            folder.is_dir().then_some(folder)
        });
        Paused { child, pins: pins.expect("the scratch pod has pins"), record }
    }

    fn go_on(&mut self, signal: Option<Signal>) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        for signal in signal.into_iter().chain([Signal::SIGCONT]) {
            kill(pid, signal).expect("signal the run");
        }
    }

    fn end(mut self) -> Value {
        self.go_on(None);
        let output = self.child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

#[test]
fn a_link_that_is_gone_is_named() {
    kernel_test(|node| {
        for (hook, trial) in [("connect4", "outbound IPv4"), ("peername6", "outbound IPv6")] {
            let paused = Paused::start(node);
            fs::remove_file(paused.pins.join(hook)).expect("remove a pin");
            // The kernel ends the link a little later.
            std::thread::sleep(Duration::from_millis(200));
            let report = paused.end();
            assert!(faults(&report).contains(&format!("the link of {hook} is gone")), "{report}");
            assert!(ended(&report, "failed").contains(&trial.to_owned()), "{report}");
            assert_nothing_stays(node);
        }
    });
}

#[test]
fn a_link_that_runs_another_program_is_named() {
    kernel_test(|node| {
        let paused = Paused::start(node);
        let link = sys::obj_get(&paused.pins.join("connect4")).expect("the link");
        let ours = sys::obj_get(&version(node).join("progs/connect4")).expect("the program");
        sys::link_update(link, load(CONNECT4, "older", &answer(1)), ours).expect("replace the program");
        let report = paused.end();
        assert!(faults(&report).contains("the link of connect4 runs another program"), "{report}");
        assert!(ended(&report, "failed").contains(&"outbound IPv4".to_owned()), "{report}");
        assert_nothing_stays(node);
    });
}

#[test]
fn a_guard_that_is_gone_is_named() {
    kernel_test(|node| {
        let paused = Paused::start(node);
        let netns = paused.record["netns"].as_str().expect("a path").to_owned();
        let removed = Command::new("nsenter")
            .arg(format!("--net={netns}"))
            .args(["tc", "qdisc", "del", "dev", "eth0", "clsact"])
            .output()
            .expect("tc starts");
        assert!(removed.status.success(), "{removed:?}");
        let report = paused.end();
        assert!(faults(&report).contains("the filter guard_egress on eth0 is gone"), "{report}");
        assert_eq!(ended(&report, "failed"), ["around the hooks IPv4", "around the hooks IPv6"], "{report}");
        assert_nothing_stays(node);
    });
}

/// The folder of the installation.
pub(crate) fn version(node: &Node) -> PathBuf {
    let mut folders = fs::read_dir(node.bpffs().join("redirect-cni")).expect("pins").flatten();
    folders.find(|entry| entry.path().join("progs").is_dir()).expect("an installation").path()
}

#[test]
fn programs_of_another_build_are_named() {
    kernel_test(|node| {
        assert_eq!(Outcome::of(node.redirect().arg("install")).code, Some(0));
        let folder = version(node);
        let pin = folder.join("progs/connect4");
        fs::remove_file(&pin).expect("remove a pin");
        sys::obj_pin(load(CONNECT4, "connect4", &answer(1)), &pin).expect("pin another program");
        let changed = Outcome::of(verify(node).args(["-o", "json"]));
        assert_eq!(changed.code, Some(1), "{changed:?}");
        assert!(ended(&report(&changed), "failed").contains(&"outbound IPv4".to_owned()), "{changed:?}");
        let text = Outcome::of(&mut verify(node)).stdout;
        assert!(text.contains("FAILED  outbound over IPv4: ") && !text.contains("24 of 24"), "{text}");

        let stamp = folder.join("object");
        let target = fs::read_link(&stamp).expect("the stamp").to_string_lossy().into_owned();
        let rest = target.splitn(3, ' ').nth(2).expect("maps and features").to_owned();
        fs::remove_file(&stamp).expect("remove the stamp");
        std::os::unix::fs::symlink(format!("0.0.1 0ddba11 {rest}"), &stamp).expect("write a stamp");
        let older = Outcome::of(verify(node).args(["-o", "json"]));
        let faults = faults(&report(&older));
        assert!(faults.contains("version 0.0.1") && faults.contains("redirect upgrade"), "{faults}");
        assert_nothing_stays(node);
        assert_eq!(Outcome::of(node.redirect().args(["uninstall"])).code, Some(0));
    });
}

#[test]
fn a_node_without_cgroup_v2_is_red_and_says_so() {
    kernel_test(|node| {
        // In a mount namespace of its own the hierarchies are gone.
        let script = "umount -l -R /sys/fs/cgroup && exec \"$@\"";
        let outcome = Outcome::of(
            Command::new("unshare")
                .args(["--mount", "sh", "-c", script, "sh"])
                .arg(binary("redirect"))
                .arg("--bpffs")
                .arg(node.bpffs())
                .arg("--state-dir")
                .arg(node.state_dir())
                .args(["verify", "-o", "json"]),
        );
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let report = report(&outcome);
        assert!(faults(&report).contains("no cgroup file system is mounted here"), "{report}");
        assert_eq!(ended(&report, "untried").len(), 24, "{report}");
    });
}

#[test]
fn interrupted_it_takes_everything_away() {
    kernel_test(|node| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut paused = Paused::start(node);
            paused.go_on(Some(signal));
            let output = paused.child.wait_with_output().expect("it ends");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted"), "{output:?}");
            assert_nothing_stays(node);
        }
    });
}

#[test]
fn what_a_killed_run_leaves_gc_collects_and_a_living_run_is_left_alone() {
    kernel_test(|node| {
        let living = Paused::start(node);
        let collected = Outcome::of(node.redirect().arg("gc"));
        assert_eq!(collected.code, Some(0), "{collected:?}");
        assert_eq!(node.attached().len(), 1, "a living run's scratch pod stays");
        let mut living = living;
        living.go_on(None);
        let output = living.child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");

        let mut killed = Paused::start(node);
        killed.child.kill().expect("kill it");
        killed.child.wait().expect("it ends");
        assert_eq!(node.attached().len(), 1, "the kill left a scratch pod");
        let collected = Outcome::of(node.redirect().arg("gc"));
        assert!(collected.stdout.contains("scratch pod"), "{collected:?}");
        assert_nothing_stays(node);
        assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
    });
}
