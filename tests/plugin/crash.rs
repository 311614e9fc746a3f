//! The plugin killed, as by `kill -9`, at every step: the repeated call converges, and a pod that runs
//! meanwhile never sends in clear.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use harness::cli::Outcome;
use harness::{Node, Pod, Service, kernel_test};
use redirect_user::kernel::hook::Hook;

use crate::sandbox::{Sandbox, Trap, any, assert_nothing_attached, assert_redirected, processes_in};

/// Steps of the first ADD on a node only.
const INSTALL: [&str; 2] = ["install-maps", "install-rename"];

/// Steps of every ADD.
pub(crate) fn add_steps() -> Vec<String> {
    let before = ["add-cgroup", "attach-record", "attach-netns", "attach-tables", "attach-folder"];
    let links = Hook::ALL.iter().map(|hook| format!("attach-{hook}"));
    let after = ["attach-guard", "attach-filters", "add-attached"];
    before.map(str::to_owned).into_iter().chain(links).chain(after.map(str::to_owned)).collect()
}

/// Steps of every DEL.
fn del_steps() -> Vec<String> {
    let links = Hook::ALL.iter().rev().map(|hook| format!("detach-{hook}"));
    links.chain(["detach-links", "detach-filters", "detach-tables"].map(str::to_owned)).collect()
}

/// A sandbox whose policy needs every hook.
pub(crate) fn sandbox(node: &Node, pod: &Pod, id: &str) -> Sandbox {
    let tproxy = serde_json::json!({ "interceptionMode": "TPROXY" });
    Sandbox::new(node, pod, id).with("dnsCapture", serde_json::json!(true)).with("defaults", tproxy)
}

/// Runs a verb that must die at the step.
#[track_caller]
pub(crate) fn kill_at(sandbox: &Sandbox, verb: &str, step: &str) {
    let reply = sandbox.clone().fault(step).call(verb).run();
    assert_eq!(
        (reply.signal, reply.stdout.as_str()),
        (Some(libc::SIGKILL), ""),
        "{verb} at {step}: {reply:?}"
    );
}

/// The files in a folder and in its folders.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Every step of the sources of the plugin and its library.
pub(crate) fn points() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut found = BTreeSet::new();
    for folder in ["redirect-user/src", "cni/src"] {
        for path in files_below(&root.join(folder)) {
            let source = std::fs::read_to_string(&path).expect("a source file");
            for call in source.split("fault::point(").skip(1) {
                let step = call.split('"').nth(1).expect("a step is a literal");
                match step.strip_suffix("{hook}") {
                    Some(verb) => found.extend(Hook::ALL.iter().map(|hook| format!("{verb}{hook}"))),
                    None => found.extend([step.to_owned()]),
                }
            }
        }
    }
    found
}

#[test]
fn every_step_of_the_sources_is_in_the_lists() {
    let mut known: BTreeSet<String> = INSTALL.iter().map(|step| (*step).to_owned()).collect();
    known.extend(add_steps());
    known.extend(del_steps());
    let mut found = points();
    // The steps of an upgrade are tried by the campaign, those of a removal are tested with the removal.
    found.retain(|step| !step.starts_with("upgrade-") && !step.starts_with("discard-"));
    assert_eq!(found, known);
}

#[test]
fn an_add_that_dies_converges_when_it_is_repeated() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = sandbox(node, &pod, "c0ffee");
        let app = pod.app();
        for step in INSTALL.map(str::to_owned).into_iter().chain(add_steps()) {
            kill_at(&sandbox, "ADD", &step);
            sandbox.add();
            assert_eq!(sandbox.check().success(), "", "after {step}");
            let sidecar = pod.sidecar();
            assert_redirected(&app);
            drop(sidecar);
            sandbox.del();
            assert_nothing_attached(node);
            if INSTALL.contains(&step.as_str()) {
                // The next step is one of a fresh node, too.
                assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
            }
        }
    });
}

#[test]
fn an_add_that_dies_is_undone_by_del() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = sandbox(node, &pod, "c0ffee");
        sandbox.add();
        sandbox.del();
        for step in add_steps() {
            kill_at(&sandbox, "ADD", &step);
            // A runtime sends DEL after an ADD that failed.
            sandbox.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn a_del_that_dies_converges_when_it_is_repeated() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = sandbox(node, &pod, "c0ffee");
        for step in del_steps() {
            sandbox.add();
            kill_at(&sandbox, "DEL", &step);
            sandbox.del();
            assert_nothing_attached(node);
        }
    });
}

#[test]
fn a_running_pod_never_sends_in_clear_while_its_add_is_repeated_and_dies() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = sandbox(node, &pod, "c0ffee");
        sandbox.add();
        let _sidecar = pod.sidecar();
        let app = pod.app();
        let trap = Trap::new(node);
        for step in add_steps() {
            kill_at(&sandbox, "ADD", &step);
            trap.assert_avoided_by(&app, &step);
        }
        sandbox.add();
        assert_redirected(&app);
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_new_sandbox_converges_after_the_takeover_died() {
    kernel_test(|node| {
        let (pod, new_netns) = (node.pod("old"), node.pod("new"));
        let old = sandbox(node, &pod, "old");
        let new = old.again("new", new_netns.netns().path());
        for step in add_steps() {
            old.add();
            kill_at(&new, "ADD", &step);
            // The old sandbox's DEL may come before the new one's ADD is repeated.
            old.del();
            new.add();
            assert_eq!(new.check().success(), "", "after {step}");
            let (proxy, app) = processes_in(&pod, &new_netns);
            proxy.serve(&any(15001), Service::Tell).unwrap();
            assert_redirected(&app);
            new.del();
            assert_nothing_attached(node);
        }
    });
}
