//! `redirect doctor`: every check is provoked, and says what is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use harness::cgroup::Cgroup;
use harness::cli::Outcome;
use harness::neighbour::{Attached, CONNECT4, EXCLUSIVE, MULTI, PREORDER, answer};
use harness::{Node, User, binary, kernel_test};
use serde_json::Value;

use crate::verify::version;

/// `redirect doctor` of a node whose root and cgroups are the test's own.
fn doctor(node: &Node) -> Command {
    let mut command = node.redirect();
    command.arg("doctor").arg("--host-root").arg(root(node)).arg("--cgroup-root").arg(node.cgroup());
    command
}

fn root(node: &Node) -> std::path::PathBuf {
    node.dir().join("root")
}

/// Runs it and finds a check: its status and detail.
fn check(command: &mut Command, id: &str) -> (String, String) {
    let outcome = Outcome::of(command.args(["-o", "json"]));
    let findings: Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    let list = findings.as_array().expect("a list");
    let any_missing = list.iter().any(|finding| finding["status"] == "missing");
    assert_eq!(outcome.code, Some(i32::from(any_missing)), "{outcome:?}");
    let found =
        list.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id}: {findings}"));
    let is_found = found["status"] == "found";
    assert_eq!(found["remedy"].as_str().expect("text").is_empty(), is_found, "{found}");
    let text = |key: &str| found[key].as_str().expect("text").to_owned();
    (text("status"), text("detail"))
}

#[track_caller]
fn assert_says(command: &mut Command, id: &str, status: &str, part: &str) {
    let (said, detail) = check(command, id);
    assert!(said == status && detail.contains(part), "{id}: {said}, {detail:?}, not {status} with {part:?}");
    assert_eq!(detail.lines().count(), 1, "{id}: more than one line: {detail}");
}

fn write(node: &Node, path: &str, text: &str) {
    let path = root(node).join(path);
    fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("make folders");
    fs::write(path, text).expect("write a file");
}

#[test]
fn a_full_map_is_named_with_the_pod_that_has_most_of_it() {
    kernel_test(|node| {
        assert_eq!(Outcome::of(node.redirect().arg("install")).code, Some(0));
        assert_says(&mut doctor(node), "RC0109", "found", "the fullest is");
        let filled = node.fill_map("PODS");
        assert_says(&mut doctor(node), "RC0109", "missing", "PODS: 4096 of 4096 entries, most of them of");
        drop(filled);
        assert_says(&mut doctor(node), "RC0109", "found", "the fullest is");
    });
}

#[test]
fn on_this_machine_nothing_that_an_add_needs_is_missing() {
    kernel_test(|node| {
        let outcome = Outcome::of(doctor(node).arg("--pre"));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        for id in ["RC0101", "RC0102", "RC0103", "RC0104", "RC0105", "RC0106"] {
            assert_says(&mut doctor(node), id, "found", "");
        }
        assert!(!outcome.stdout.contains("RC0401"), "--pre looks at pods: {outcome:?}");
        assert!(!outcome.stdout.contains('\x1b'), "colours without a terminal: {outcome:?}");
        let short = Outcome::of(doctor(node).args(["--pre", "-o", "short"]));
        assert!(!short.stdout.contains("RC0101") && short.code == Some(0), "{short:?}");
    });
}

#[test]
fn what_an_add_needs() {
    kernel_test(|node| {
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-sys_admin", "--inh-caps=-all"]).arg(binary("redirect"));
        without.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir()).arg("doctor");
        assert_says(&mut without, "RC0101", "missing", "lacks CAP_SYS_ADMIN");
        let mut nowhere = node.redirect_on(Path::new("/tmp"));
        assert_says(nowhere.arg("doctor"), "RC0102", "missing", "/tmp is not one");
        let mut v1 = node.redirect();
        v1.args(["doctor", "--cgroup-root", "/tmp"]);
        assert_says(&mut v1, "RC0103", "missing", "is not a cgroup v2 file system");
        let mut state = Command::new(binary("redirect"));
        state.arg("--bpffs").arg(node.bpffs()).args(["--state-dir", "/proc/nowhere", "doctor"]);
        assert_says(&mut state, "RC0106", "missing", "/proc/nowhere");
    });
}

/// A mount that another one covers is in the list of mounts, too.
#[test]
fn the_cgroup_root_is_the_one_that_the_plugin_finds() {
    kernel_test(|node| {
        let seen = node.dir().join("cgroup");
        fs::create_dir(&seen).expect("make a folder");
        let script = r#"mount -t tmpfs none "$0" && mount -t cgroup2 none "$1" && shift && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.arg(Cgroup::mount_point()).arg(&seen).arg(binary("redirect"));
        command.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir()).arg("doctor");
        assert_says(&mut command, "RC0103", "found", &seen.display().to_string());
    });
}

#[test]
fn a_state_directory_that_cannot_be_written_is_missing() {
    kernel_test(|node| {
        let mut command = Command::new("unshare");
        let script = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(node.state_dir());
        command.arg(binary("redirect")).arg("--bpffs").arg(node.bpffs());
        command.arg("--state-dir").arg(node.state_dir()).arg("doctor");
        assert_says(&mut command, "RC0106", "missing", "Read-only file system");
    });
}

#[test]
fn what_a_kernel_may_lack() {
    kernel_test(|node| {
        // The kernel's answers are replaced on their way to the tool.
        let traced = |fault: &str| {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", fault]).arg(binary("redirect"));
            command.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir()).arg("doctor");
            command
        };
        let mut old = traced("inject=getsockopt:error=ENOPROTOOPT");
        assert_says(&mut old, "RC0104", "missing", "SO_NETNS_COOKIE");
        let mut refused = traced("inject=bpf:error=EINVAL:when=40+");
        let (status, detail) = check(&mut refused, "RC0105");
        assert!(status == "missing" && detail.lines().count() == 1, "{status}: {detail}");
        // What may not be asked is not missing.
        let mut forbidden = traced("inject=bpf:error=EPERM");
        assert_says(&mut forbidden, "RC0105", "untried", "may not load programs");
    });
}

#[test]
fn the_installation() {
    kernel_test(|node| {
        assert_eq!(Outcome::of(node.redirect().arg("install")).code, Some(0));
        assert_says(&mut doctor(node), "RC0107", "found", "version");
        assert_says(&mut doctor(node), "RC0108", "found", "");
        let stamp = version(node).join("object");
        let target = fs::read_link(&stamp).expect("the stamp").to_string_lossy().into_owned();
        fs::remove_file(&stamp).expect("remove the stamp");
        let maps = target.rsplit(' ').next().expect("maps");
        std::os::unix::fs::symlink(format!("0.0.1 0ddba11 {maps}"), &stamp).expect("write a stamp");
        assert_says(&mut doctor(node), "RC0107", "warning", "version 0.0.1");
        fs::remove_file(version(node).join("progs/inbound")).expect("remove a pin");
        assert_says(&mut doctor(node), "RC0108", "missing", "inbound is missing");
        // --wait ends when nothing is missing any more, and not before its time otherwise.
        let begun = Instant::now();
        assert_eq!(Outcome::of(doctor(node).args(["--wait", "2"])).code, Some(1));
        assert!(begun.elapsed().as_secs() >= 2, "it did not wait");
        assert_eq!(Outcome::of(node.redirect().arg("install")).code, Some(0));
        assert_eq!(Outcome::of(doctor(node).args(["--wait", "60"])).code, Some(0));
        assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
    });
}

const BRIDGE: &str = r#"{"type":"bridge"}"#;
const OURS: &str = r#"{"type":"redirect-cni","podSource":"annotations",
    "capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true}}"#;

fn chain(entries: &[&str]) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"mesh","plugins":[{}]}}"#, entries.join(","))
}

#[test]
fn the_networks_configuration() {
    kernel_test(|node| {
        let list = "etc/cni/net.d/10-mesh.conflist";
        write(node, list, &chain(&[BRIDGE, OURS]));
        assert_says(&mut doctor(node), "RC0201", "found", "10-mesh.conflist");
        for id in ["RC0202", "RC0203", "RC0204", "RC0206", "RC0303"] {
            assert_says(&mut doctor(node), id, "found", "");
        }
        assert_says(&mut doctor(node), "RC0205", "missing", "opt/cni/bin/redirect-cni");
        fs::create_dir_all(root(node).join("opt/cni/bin")).expect("a folder");
        fs::copy(binary("redirect-cni"), root(node).join("opt/cni/bin/redirect-cni"))
            .expect("copy the plugin");
        assert_says(&mut doctor(node), "RC0205", "found", "redirect-cni");

        write(node, list, &chain(&[BRIDGE]));
        assert_says(&mut doctor(node), "RC0201", "warning", "has none");
        assert_says(&mut doctor(node), "RC0202", "untried", "no entry of ours");
        write(node, list, &chain(&[BRIDGE, OURS, r#"{"type":"bandwidth"}"#]));
        assert_says(&mut doctor(node), "RC0202", "warning", "\"bandwidth\" comes behind it");
        write(node, list, &chain(&[BRIDGE, r#"{"type":"redirect-cni","podSource":"annotations"}"#]));
        assert_says(&mut doctor(node), "RC0203", "missing", "io.kubernetes.cri.pod-annotations");
        write(node, list, &chain(&[BRIDGE, r#"{"type":"istio-cni"}"#, OURS]));
        assert_says(&mut doctor(node), "RC0206", "warning", "istio-cni");
        write(node, "etc/cni/net.d/05-other.conflist", &chain(&[BRIDGE]));
        assert_says(
            &mut doctor(node),
            "RC0204",
            "warning",
            "takes 05-other.conflist, and 10-mesh.conflist never",
        );
        write(node, "etc/cni/net.d/99-loopback.conf.cilium_bak", "");
        assert_says(&mut doctor(node), "RC0303", "warning", "99-loopback.conf.cilium_bak");
    });
}

#[test]
fn programs_of_neighbours() {
    kernel_test(|node| {
        let pods = node.cgroup().join("kubepods");
        fs::create_dir_all(&pods).expect("make a cgroup");
        assert_says(&mut doctor(node), "RC0301", "found", "");
        {
            let _theirs = Attached::new(&pods, CONNECT4, "jealous", &answer(1), EXCLUSIVE);
            assert_says(&mut doctor(node), "RC0301", "missing", "(jealous) on ");
        }
        for (id, name) in [("RC0304", "cil_sock4_connect"), ("RC0305", "calico_connect_v4")] {
            assert_says(&mut doctor(node), id, "found", "not on this node");
            let _theirs = Attached::new(node.cgroup(), CONNECT4, name, &answer(1), MULTI);
            let kept = &name[..15];
            match id {
                // Whether it is for pods, too, only Cilium's own files say.
                "RC0304" => {
                    assert_says(&mut doctor(node), id, "untried", kept);
                    let file = "var/run/cilium/state/globals/node_config.h";
                    write(node, file, "#define ENABLE_IPV4 1\n");
                    assert_says(&mut doctor(node), id, "warning", kept);
                    write(node, file, "#define ENABLE_SOCKET_LB_HOST_ONLY 1\n");
                    assert_says(&mut doctor(node), id, "found", kept);
                }
                _ => assert_says(&mut doctor(node), id, "warning", kept),
            }
        }
    });
}

#[test]
fn a_program_that_runs_before_ours() {
    kernel_test(|node| {
        assert_says(&mut doctor(node), "RC0302", "untried", "no pod is attached");
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        assert_says(&mut doctor(node), "RC0302", "found", "ours come first");
        {
            let _behind = Attached::new(node.cgroup(), CONNECT4, "polite", &answer(1), MULTI);
            assert_says(&mut doctor(node), "RC0302", "found", "ours come first");
        }
        let _before = Attached::new(node.cgroup(), CONNECT4, "pushy", &answer(1), PREORDER);
        assert_says(&mut doctor(node), "RC0302", "warning", "(pushy) runs before ours at connect4");
    });
}

#[test]
fn kubelet_runtime_and_injector() {
    kernel_test(|node| {
        assert_says(&mut doctor(node), "RC0306", "untried", "configuration is not where");
        write(node, "var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\ncgroupDriver: systemd\n");
        write(node, "etc/containerd/config.toml", "[a.options]\n  SystemdCgroup = true\n");
        assert_says(&mut doctor(node), "RC0306", "found", "systemd");
        write(node, "etc/containerd/config.toml", "[a.options]\n  SystemdCgroup = false\n");
        assert_says(
            &mut doctor(node),
            "RC0306",
            "missing",
            "the kubelet's is systemd, the runtime's is cgroupfs",
        );
        assert_says(&mut doctor(node), "RC0307", "found", "");
        let outcomes = node.state_dir().join("outcomes");
        fs::create_dir_all(&outcomes).expect("a folder");
        fs::write(outcomes.join("istio_init"), "\n\n").expect("count two");
        assert_says(&mut doctor(node), "RC0307", "warning", "2 pods since the boot");
    });
}

#[test]
fn attached_pods() {
    kernel_test(|node| {
        for id in ["RC0401", "RC0402", "RC0403"] {
            assert_says(&mut doctor(node), id, "found", "no pod is attached");
        }
        let (good, open) = (node.pod("good"), node.pod("open"));
        node.attach(&good, &[]);
        assert_says(&mut doctor(node), "RC0402", "found", "1 attached");
        node.attach(&open, &["--exclude-outbound-ip-ranges", "0.0.0.0/0"]);
        assert_says(
            &mut doctor(node),
            "RC0402",
            "warning",
            "container open: nothing that it sends is captured",
        );
        assert_says(&mut doctor(node), "RC0403", "found", "2 attached");
        for rule in ["-N ISTIO_OUTPUT", "-A ISTIO_OUTPUT -j RETURN"] {
            let _ =
                good.netns().output_of(Command::new("iptables").args(["-t", "nat"]).args(rule.split(' ')));
        }
        assert_says(&mut doctor(node), "RC0403", "warning", "container good has chains of Istio's");
        let links = version(node).join("pods/good/eth0");
        fs::remove_file(links.join("peername4")).expect("remove a pin");
        assert_says(&mut doctor(node), "RC0401", "missing", "container good: the link of peername4 is gone");
    });
}

/// `redirect doctor --pod`
fn of_pod(node: &Node) -> Command {
    let mut command = node.redirect();
    command.args(["doctor", "--pod", "web"]);
    command
}

#[test]
fn one_pod() {
    kernel_test(|node| {
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        assert_says(&mut of_pod(node), "RC0501", "found", "");
        assert_says(&mut of_pod(node), "RC0502", "found", "");
        assert_says(&mut of_pod(node), "RC0503", "warning", "nothing listens on 15001 and 15006");
        assert_says(&mut of_pod(node), "RC0507", "untried", "no process");
        {
            let _sidecar = pod.sidecar();
            assert_says(&mut of_pod(node), "RC0503", "found", "on 15001 and 15006");
        }
        let _app = pod.app();
        for id in ["RC0504", "RC0505", "RC0506", "RC0507", "RC0508"] {
            assert_says(&mut of_pod(node), id, "found", "");
        }
        let _root = pod.process("tools", User::ROOT);
        assert_says(&mut of_pod(node), "RC0507", "warning", "has NET_RAW");
        assert_says(&mut of_pod(node), "RC0508", "warning", "has NET_ADMIN");
        pod.netns().ip("link add docker0 type bridge");
        assert_says(&mut of_pod(node), "RC0505", "warning", "docker0");
        let dnat = "-t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.17.0.2:80";
        let _ = pod.netns().output_of(Command::new("iptables").args(dnat.split(' ')));
        assert_says(&mut of_pod(node), "RC0504", "warning", "DNAT");
        fs::remove_file(version(node).join("pods/web/eth0/connect4")).expect("remove a pin");
        assert_says(&mut of_pod(node), "RC0501", "missing", "the link of connect4 is gone");
        node.detach(&pod);
        node.attach(&pod, &["--include-outbound-ip-ranges", "", "--include-inbound-ports", ""]);
        assert_says(&mut of_pod(node), "RC0502", "warning", "nothing is captured, neither way");
    });
}
