//! Two versions of the plugin on one node: programs of another build, and another ABI version, whose pods
//! have folders and maps of their own.
//!
//! A build with debug assertions takes its ABI version from a variable where that is set. So the same
//! binaries are a second version, with its own programs, maps and pins.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Family, Node, Pod, kernel_test};
use redirect_user::attach::replan;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::pins::{self, ABI_VARIABLE};
use redirect_user::kernel::sys;
use redirect_user::node::lock::NodeLock;

use crate::call::{Call, Reply};
use crate::collect::{gc, status};
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

/// The other version.
const NEXT: u32 = redirect_common::ABI_VERSION + 1;

fn next(call: Call) -> Reply {
    call.env(ABI_VARIABLE, NEXT.to_string()).run()
}

/// The tool of the next version, with a subcommand.
fn next_tool(node: &Node, verb: &str) -> Outcome {
    Outcome::of(node.redirect().arg(verb).env(ABI_VARIABLE, NEXT.to_string()))
}

fn own_tool(node: &Node, verb: &str) -> Outcome {
    Outcome::of(node.redirect().arg(verb))
}

fn folder(node: &Node, version: u32) -> PathBuf {
    node.bpffs().join(format!("redirect-cni/v{version}"))
}

/// How often a hook of ours runs for the pod.
fn programs_on(pod: &Pod, hook: Hook) -> usize {
    sys::programs_on(fs::File::open(pod.cgroup()).unwrap(), hook).unwrap().0.len()
}

/// Captured both ways, by one generation of programs.
#[track_caller]
fn assert_captured(node: &Node, pod: &Pod, app: &harness::Process, client: &str) {
    assert_redirected(app);
    let client = node.pod(client);
    for family in Family::ALL {
        assert_eq!(client.app().connect(pod.at(family, 80)).unwrap().seen().listener, 15006);
    }
    for hook in [Hook::Connect4, Hook::SockOps, Hook::OriginalDst] {
        assert_eq!(programs_on(pod, hook), 1, "{hook}");
    }
}

#[test]
fn every_verb_of_the_next_version_knows_the_pods_of_this_one() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        // DEL, GC and the tool's gc by the version that did not attach.
        sandbox.add();
        assert_eq!(next(sandbox.call("DEL")).success(), "");
        assert_nothing_attached(node);
        sandbox.add();
        assert_eq!(next(gc(&sandbox, &[])).success(), "");
        assert_nothing_attached(node);
        // While the pod runs they leave it alone.
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        assert_eq!(next(gc(&sandbox, &[])).success(), "");
        assert_eq!(next_tool(node, "gc").code, Some(0));
        let listed = next_tool(node, "list");
        assert!(listed.code == Some(1) && listed.stdout.contains("brings it over"), "{listed:?}");
        let reply = status(&sandbox).env(ABI_VARIABLE, NEXT.to_string()).run();
        assert_eq!(reply.success(), "", "a pod of another version is not open");
        let refused = next_tool(node, "uninstall");
        assert!(refused.code == Some(1) && refused.stderr.contains("shop/web-0"), "{refused:?}");
        assert_captured(node, &pod, &app, "client");
        drop(app);
        sandbox.del();
        assert_nothing_attached(node);
        assert_eq!(next_tool(node, "uninstall").code, Some(0));
        assert!(!node.bpffs().join("redirect-cni").exists());
    });
}

#[test]
fn an_upgrade_brings_running_pods_over_and_another_one_back() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        // A connection that stays open. What its slot stands for is needed by those that are on their way to
        // the sidecar in the moment, too.
        let dialled = std::net::SocketAddr::from(([192, 0, 2, 10], 80));
        let open = app.connect(dialled).unwrap();
        for (round, back) in [false, true, false].into_iter().enumerate() {
            let (outcome, there, gone) = match back {
                false => (next_tool(node, "upgrade"), NEXT, redirect_common::ABI_VERSION),
                true => (own_tool(node, "upgrade"), redirect_common::ABI_VERSION, NEXT),
            };
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            assert!(outcome.stdout.contains("shop/web-0"), "{outcome:?}");
            assert!(folder(node, there).join("pods/c0ffee/eth0").exists());
            assert!(!folder(node, gone).exists(), "a version without pods stays");
            assert_eq!(open.peername(), Ok(dialled), "the slots were not taken along");
            assert_captured(node, &pod, &app, &format!("client{round}"));
        }
        // It is the next version's now: CHECK by that one, DEL by this one.
        assert_eq!(next(sandbox.call("CHECK")).success(), "");
        sandbox.del();
        assert_eq!(fs::read_dir(folder(node, NEXT).join("pods")).unwrap().count(), 0);
        assert_eq!(own_tool(node, "uninstall").code, Some(0));
    });
}

/// A pod of a version that had not all of this one's hooks.
#[test]
fn an_upgrade_gives_running_pods_the_hooks_that_they_lack() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let versions = fs::read_dir(node.bpffs().join("redirect-cni")).unwrap();
        let links = versions.map(|version| version.unwrap().path().join("pods/c0ffee/eth0/connect6"));
        let link = links.into_iter().find(|link| link.exists()).expect("a link");
        fs::remove_file(&link).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while programs_on(&pod, Hook::Connect6) > 0 {
            assert!(Instant::now() < deadline, "the link does not end");
        }
        let upgraded = own_tool(node, "upgrade");
        assert!(upgraded.code == Some(0) && upgraded.stdout.contains("connect6"), "{upgraded:?}");
        assert!(link.exists(), "the pod has no connect6");
        assert_captured(node, &pod, &app, "client");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn an_add_of_the_next_version_brings_the_nodes_pods_over_and_this_ones_leaves_them() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("web"), node.pod("other"));
        let (first, second) = (Sandbox::new(node, &pod, "one"), Sandbox::new(node, &other, "two"));
        first.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        next(second.call("ADD")).success();
        assert!(folder(node, NEXT).join("pods/one/eth0").exists(), "the first one was not brought over");
        assert_captured(node, &pod, &app, "client");
        // An older plugin, as after a roll-back, leaves the pods of the newer one where they are.
        second.add();
        assert!(folder(node, NEXT).join("pods/one/eth0").exists());
        assert_captured(node, &pod, &app, "client2");
        assert_eq!(own_tool(node, "upgrade").code, Some(0));
        for sandbox in [&first, &second] {
            assert_eq!(sandbox.check().success(), "");
        }
        assert_captured(node, &pod, &app, "client3");
        for sandbox in [first, second] {
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

/// What comes after ADD is planned again by the version that has the pod: a filter of another one would not
/// find the pod in its own maps, and would refuse all that goes through.
#[test]
fn a_pod_of_another_version_is_not_cut_off_when_its_network_changes() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        next(sandbox.call("ADD")).success();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        pod.netns().ip("link add net1 type veth peer name far1\n\
             link set far1 up\n\
             link set net1 up\n\
             addr add 10.99.0.2/24 dev net1");
        let ours = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let attachment = redirect_user::inspect::list(&ours).unwrap().pop().unwrap();
        assert!(!replan::look(&attachment).unwrap().stale.is_empty(), "nothing came");
        let lock = NodeLock::acquire(&ours).unwrap();
        assert_eq!(replan::replan(&ours, &lock, &attachment).unwrap().stale, [], "told, and not done");
        drop(lock);
        assert_captured(node, &pod, &app, "client");
        // CHECK of this version brings the pod over, and it is planned with what came.
        let details = sandbox.call("CHECK").run().refused(106);
        assert!(details.contains("repaired now"), "{details}");
        assert_captured(node, &pod, &app, "client2");
        assert_eq!(sandbox.check().success(), "");
        assert!(node.json(&["show", "c0ffee"]).to_string().contains("10.99.0.2"));
        assert_captured(node, &pod, &app, "client3");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

/// Makes the node look as if another build had installed its programs, which know these features.
fn stamp(node: &Node, version: &str, features: u32) {
    let stamp = pins::current(&redirect_user::node::Node::new(node.bpffs(), node.state_dir())).stamp();
    let now = fs::read_link(&stamp).unwrap();
    let maps = now.to_str().unwrap().split(' ').nth(2).unwrap().to_owned();
    fs::remove_file(&stamp).unwrap();
    let text = format!("{version} 0123456789abcdef {maps} {features:x}");
    std::os::unix::fs::symlink(text, &stamp).unwrap();
}

#[test]
fn a_policy_that_the_installed_programs_cannot_carry_out_is_refused_with_the_reason() {
    kernel_test(|node| {
        use redirect_common::flags;
        let (pod, other) = (node.pod("web"), node.pod("other"));
        let plain = Sandbox::new(node, &pod, "plain");
        plain.add();
        let range = ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "192.0.2.0/24");
        let needing = Sandbox::new(node, &other, "needing").annotated(&[range]);
        let without = redirect_user::kernel::features::KNOWN & !flags::EXCLUDED_RANGES;
        // An older build, whose programs the ADD replaces: there is nothing to refuse.
        stamp(node, "0.0.1", without);
        let reply = status(&plain).run();
        assert!(reply.success().is_empty() && reply.stderr.contains("version 0.0.1"), "{reply:?}");
        let listed = own_tool(node, "list");
        assert!(listed.code == Some(0) && listed.stderr.contains("version 0.0.1"), "{listed:?}");
        needing.add();
        needing.del();
        // A newer build is not replaced, and an upgrade that cannot be done says why.
        stamp(node, "99.0.0", without);
        let details = needing.call("ADD").run().refused(105);
        for part in ["version 99.0.0", "do not know excludeOutboundIPRanges", "redirect upgrade"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        stamp(node, "0.0.1", without);
        let blocked = folder(node, redirect_common::ABI_VERSION).join("progs-new");
        fs::create_dir_all(&blocked).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&blocked).status().unwrap();
        assert!(mounted.success());
        let details = needing.call("ADD").run().refused(105);
        // What needs nothing that they lack is attached all the same.
        plain.add();
        assert!(Command::new("umount").arg(&blocked).status().unwrap().success());
        for part in
            ["version 0.0.1", "excludeOutboundIPRanges", "an upgrade was tried and failed", "progs-new"]
        {
            assert!(details.contains(part), "{part}: {details}");
        }
        assert!(!node.attached().contains(&"needing".to_owned()));
        needing.add();
        for sandbox in [plain, needing] {
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}
