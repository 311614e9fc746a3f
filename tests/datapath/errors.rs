//! Misuse of `redirect attach`: one clear error that names what was wrong, the right status, nothing left
//! attached.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::cli::Outcome;
use harness::{Family, Node, Pod, binary, kernel_test};

/// A failure as a user should meet it: one message on stderr that contains `names`, nothing on stdout.
fn fails(outcome: &Outcome, status: i32, names: &str) {
    assert_eq!(outcome.code, Some(status), "{outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    // Usage errors (2) are the argument parser's, which says how to get help on further lines.
    let begin = if status == 2 { "error: " } else { "redirect: " };
    assert!(outcome.stderr.starts_with(begin), "{outcome:?}");
    assert!(outcome.stderr.contains(names), "does not name {names}: {outcome:?}");
    assert!(status == 2 || outcome.stderr.lines().count() == 1, "more than one line: {outcome:?}");
}

/// Nothing is pinned for any pod.
fn nothing_attached(node: &Node) {
    let mut left = Vec::new();
    walk(node.bpffs(), &mut |path| left.push(path.display().to_string()));
    left.retain(|path| path.contains("/pods/"));
    assert_eq!(left, [""; 0]);
    assert_eq!(node.attached(), [""; 0]);
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        visit(&path);
        if path.is_dir() {
            walk(&path, visit);
        }
    }
}

/// `redirect attach` with other paths.
fn attach(node: &Node, cgroup: &Path, netns: &Path) -> Outcome {
    let mut command = node.redirect();
    command.args(["attach", "--id", "pod", "--cgroup"]).arg(cgroup).arg("--netns").arg(netns);
    Outcome::of(&mut command)
}

fn with_pod(body: impl FnOnce(&Node, &Pod)) {
    kernel_test(|node| {
        let pod = node.pod("pod");
        body(node, &pod);
        nothing_attached(node);
    });
}

#[test]
fn a_cgroup_that_is_not_there() {
    with_pod(|node, pod| {
        let missing = node.cgroup().join("no-such-cgroup");
        fails(&attach(node, &missing, pod.netns().path()), 1, "no-such-cgroup");
    });
}

#[test]
fn a_directory_that_is_not_a_cgroup() {
    with_pod(|node, pod| {
        fails(&attach(node, node.dir(), pod.netns().path()), 1, node.dir().to_str().unwrap());
    });
}

#[test]
fn a_namespace_that_is_not_there() {
    with_pod(|node, pod| {
        fails(&attach(node, pod.cgroup(), &node.dir().join("no-such-netns")), 1, "no-such-netns");
    });
}

#[test]
fn a_file_that_is_not_a_network_namespace() {
    with_pod(|node, pod| {
        let file = node.dir().join("just-a-file");
        fs::write(&file, "").unwrap();
        fails(&attach(node, pod.cgroup(), &file), 1, "just-a-file");
        // A namespace, but of another kind.
        fails(&attach(node, pod.cgroup(), Path::new("/proc/self/ns/mnt")), 1, "/proc/self/ns/mnt");
    });
}

#[test]
fn no_bpffs() {
    with_pod(|node, pod| {
        let plain = node.dir().join("no-bpffs");
        fs::create_dir(&plain).unwrap();
        for dir in [plain.as_path(), Path::new("/nowhere/at/all")] {
            let mut command = node.redirect_on(dir);
            command.args(["attach", "--id", "pod"]);
            command.arg("--cgroup").arg(pod.cgroup()).arg("--netns").arg(pod.netns().path());
            fails(&Outcome::of(&mut command), 1, dir.to_str().unwrap());
        }
        assert_eq!(fs::read_dir(&plain).unwrap().count(), 0);
    });
}

#[test]
fn no_privileges() {
    with_pod(|node, pod| {
        // The build directory need not be open to everybody; the node's directory is made so.
        let copy = node.dir().join("redirect");
        fs::copy(binary("redirect"), &copy).unwrap();
        fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(copy);
        command.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir());
        command.args(["attach", "--id", "pod"]);
        command.arg("--cgroup").arg(pod.cgroup()).arg("--netns").arg(pod.netns().path());
        let outcome = Outcome::of(command.uid(65534).gid(65534));
        fails(&outcome, 1, "");
        let text = outcome.stderr.to_lowercase();
        assert!(text.contains("permission") || text.contains("root") || text.contains("cap_"), "{outcome:?}");
        assert_eq!(fs::metadata(node.state_dir()).unwrap().uid(), 0);
    });
}

#[test]
fn bad_policies() {
    with_pod(|node, pod| {
        for (flag, value, named) in [
            ("--exclude-outbound-ports", "80,http", "http"),
            ("--exclude-outbound-ports", "80,", "--exclude-outbound-ports"),
            ("--include-inbound-ports", "65536", "65536"),
            ("--include-outbound-ports", "-1", "-1"),
            ("--include-outbound-ip-ranges", "10.0.0.1", "10.0.0.1"),
            ("--exclude-outbound-ip-ranges", "10.0.0.0/33", "10.0.0.0/33"),
            ("--exclude-outbound-ip-ranges", "*", "*"),
            (
                "--exclude-interfaces",
                "an-interface-name-that-is-too-long",
                "an-interface-name-that-is-too-long",
            ),
            ("--proxy-uid", "root", "root"),
        ] {
            let outcome = Outcome::of(node.attach_command(pod).arg(format!("{flag}={value}")));
            fails(&outcome, 2, named);
            assert!(outcome.stderr.contains(flag), "does not name {flag}: {outcome:?}");
        }
    });
}

#[test]
fn usage() {
    with_pod(|node, pod| {
        for arguments in [&["attach"][..], &["attach", "--id", "pod"], &["no-such-command"], &["detach"], &[]]
        {
            let outcome = Outcome::of(node.redirect().args(arguments));
            assert_eq!(outcome.code, Some(2), "{arguments:?}: {outcome:?}");
            assert_ne!(outcome.stderr, "", "{arguments:?}");
        }
        fails(&Outcome::of(node.attach_command(pod).arg("--no-such-flag")), 2, "--no-such-flag");
    });
}

#[test]
fn an_id_that_is_unknown() {
    with_pod(|node, _| {
        fails(&Outcome::of(node.redirect().args(["show", "nobody"])), 1, "nobody");
        fails(&Outcome::of(node.redirect().args(["detach", "--id", "nobody"])), 1, "nobody");
    });
}

/// Nothing is written below /proc/sys, so a runtime may keep it closed to its plugins.
#[test]
fn a_read_only_proc_sys_is_no_hindrance() {
    with_pod(|node, pod| {
        let closed = |command: &Command| {
            let mut shell = Command::new("unshare");
            let script =
                "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
            shell
                .args(["--mount", "sh", "-c", script, "sh"])
                .arg(command.get_program())
                .args(command.get_args());
            Outcome::of(&mut shell)
        };
        let outcome = closed(&node.attach_command(pod));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let _sidecar = pod.sidecar();
        assert_eq!(pod.app().connect(crate::far_away(Family::V4, 80)).unwrap().seen().listener, 15001);
        let outcome = closed(node.redirect().args(["detach", "--force", "--id", pod.name()]));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    });
}

/// An installation that fails takes its folders away. The lock is there, the programs are not: a process
/// without CAP_BPF and CAP_SYS_ADMIN is refused by the kernel after the first folder was made.
#[test]
fn a_failed_install_leaves_no_folder() {
    kernel_test(|node| {
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-bpf,-sys_admin,-perfmon", "--"]);
        let install = node.redirect();
        command.arg(install.get_program()).args(install.get_args()).arg("install");
        fails(&Outcome::of(&mut command), 1, "");
        let mut left = Vec::new();
        walk(node.bpffs(), &mut |path| left.push(path.to_owned()));
        // What every bpffs has: `maps.debug` and `progs.debug`.
        left.retain(|path| path.extension().is_none_or(|end| end != "debug"));
        assert!(left.is_empty(), "left behind in bpffs: {left:?}");
    });
}

#[test]
fn a_failure_does_not_disturb_what_is_attached() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        fails(&attach_as(node, "other", &node.cgroup().join("no-such-cgroup"), &other), 1, "no-such-cgroup");
        assert_eq!(node.attached(), ["pod"]);
        assert_eq!(pod.app().connect(crate::far_away(Family::V4, 80)).unwrap().seen().listener, 15001);
    });
}

fn attach_as(node: &Node, id: &str, cgroup: &Path, pod: &Pod) -> Outcome {
    let mut command = node.redirect();
    command.args(["attach", "--id", id, "--cgroup"]).arg(cgroup).arg("--netns").arg(pod.netns().path());
    Outcome::of(&mut command)
}
