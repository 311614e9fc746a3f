//! What each verb needs: it works with all capabilities dropped but those that the table in SECURITY.md
//! names. Where one of them is missing the error says so, and what was there before is there afterwards.

use std::ffi::OsString;
use std::fs;

use harness::{Node, Pod, kernel_test};
use serde_json::json;

use crate::call::{Call, Reply};
use crate::sandbox::{Sandbox, assert_nothing_attached};

/// What a verb finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// A node on which no pod was ever redirected.
    Bare,
    /// Programs, and no pod.
    Installed,
    /// The pod is redirected.
    Attached,
    /// The same, and the runtime knows nothing of it any more: cgroup and namespace are there.
    Gone,
}

/// A row of the table: the verb in words, the verb, and what it finds.
const VERBS: &[(&str, &str, Before)] = &[
    ("ADD, first of the node", "ADD", Before::Bare),
    ("ADD", "ADD", Before::Installed),
    ("CHECK, where nothing is to be repaired", "CHECK", Before::Attached),
    ("DEL", "DEL", Before::Attached),
    ("DEL of an unknown container", "DEL", Before::Installed),
    ("GC", "GC", Before::Gone),
    ("STATUS", "STATUS", Before::Installed),
    ("VERSION", "VERSION", Before::Bare),
];

/// Everything for one verb on a node.
struct Scene<'a> {
    node: &'a Node,
    pod: &'a Pod,
    sandbox: Sandbox,
}

impl Scene<'_> {
    fn prepare(&self, before: Before) {
        let sandbox = Sandbox { netns: Some(self.pod.netns().path().to_owned()), ..self.sandbox.clone() };
        let _ = sandbox.call("DEL").run().success();
        match before {
            Before::Bare => {
                let force =
                    self.node.redirect().args(["uninstall", "--force"]).output().expect("start redirect");
                assert!(force.status.success(), "{force:?}");
            }
            Before::Installed => {
                sandbox.add();
                sandbox.del();
            }
            Before::Attached | Before::Gone => sandbox.add(),
        }
    }

    fn run(&self, verb: &str, capabilities: &[&str]) -> Reply {
        let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let wrapper =
            ["setpriv", "--inh-caps=-all", &format!("--bounding-set=-all{set}"), "--"].map(OsString::from);
        self.call(verb).wrapped(&wrapper).run()
    }

    fn call(&self, verb: &str) -> Call {
        let mut sandbox = self.sandbox.clone();
        if verb == "GC" {
            sandbox.conf["cni.dev/valid-attachments"] = json!([]);
        }
        sandbox.call(verb)
    }

    /// After a verb that was refused: as it was before, for the next call of somebody who may.
    fn assert_unchanged(&self, before: Before, what: &str) {
        match before {
            Before::Bare | Before::Installed => assert_nothing_attached(self.node),
            Before::Attached | Before::Gone => {
                let checked = self.sandbox.check();
                assert_eq!(checked.code, Some(0), "{what}: {checked:?}");
            }
        }
    }
}

/// The rows of SECURITY.md: verb, capabilities.
fn documented() -> Vec<(String, Vec<String>)> {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../SECURITY.md")).expect("SECURITY.md");
    let section = text.split_once("## What each verb of the plugin needs\n").expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        (cells[1].to_owned(), words(cells[2]))
    })
    .collect()
}

#[test]
fn each_verb_works_with_the_capabilities_of_the_table_and_with_no_less() {
    let documented = documented();
    assert_eq!(documented.len(), VERBS.len(), "{documented:?}");
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("cniVersion", json!("1.1.0"));
        let scene = Scene { node, pod: &pod, sandbox };
        for (words, verb, before) in VERBS {
            let (_, needed) =
                documented.iter().find(|(row, _)| row == words).unwrap_or_else(|| panic!("{words}"));
            let short: Vec<_> =
                needed.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
            let all: Vec<&str> = short.iter().map(String::as_str).collect();
            scene.prepare(*before);
            let reply = scene.run(verb, &all);
            assert_eq!(reply.code, Some(0), "{words} with {all:?}: {reply:?}");
            for missing in &all {
                let rest: Vec<&str> = all.iter().copied().filter(|one| one != missing).collect();
                scene.prepare(*before);
                let what = format!("{words} without {missing}");
                let reply = scene.run(verb, &rest);
                assert_eq!(reply.code, Some(1), "{what}: {reply:?}");
                let details = reply.error()["details"].as_str().expect("details").to_owned();
                assert!(details.contains("CAP_"), "{what}: {details}");
                if *verb == "STATUS" {
                    let name = format!("CAP_{}", missing.to_uppercase());
                    assert_eq!(reply.error()["code"], 50, "{what}: {reply:?}");
                    assert!(details.starts_with(&format!("an ADD needs {name} (")), "{what}: {details}");
                }
                if ["DEL", "GC"].contains(verb) && *missing == "net_admin" {
                    // The links have ended, the guard keeps the pod closed, and a call that may goes on.
                    assert_eq!(node.attached(), ["c0ffee"], "{what}");
                    scene.sandbox.del();
                    assert_nothing_attached(node);
                } else {
                    scene.assert_unchanged(*before, &what);
                }
            }
        }
        scene.prepare(Before::Bare);
    });
}

/// A seccomp profile, SELinux or AppArmor refuses bpf(2) to root with all capabilities.
#[test]
fn where_bpf_is_forbidden_each_verb_says_so_and_changes_nothing() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("cniVersion", json!("1.1.0"));
        let scene = Scene { node, pod: &pod, sandbox };
        for errno in [libc::EACCES, libc::EPERM] {
            for (words, verb, before) in VERBS {
                scene.prepare(*before);
                let reply = scene.call(verb).bpf_refused(errno).run();
                if ["VERSION", "DEL of an unknown container"].contains(words) {
                    assert_eq!(reply.code, Some(0), "{words}: {reply:?}");
                    continue;
                }
                assert_eq!(reply.code, Some(1), "{words} {errno}: {reply:?}");
                let details = reply.error()["details"].as_str().expect("details").to_owned();
                for part in ["CAP_BPF", "seccomp", "SELinux"] {
                    assert!(details.contains(part), "{words} {errno}: {details}");
                }
                scene.assert_unchanged(*before, words);
            }
        }
        scene.prepare(Before::Bare);
    });
}

/// In a user namespace root has every capability, and none that bpf(2) asks for. The plugin of a rootless
/// runtime is called there.
#[test]
fn a_rootless_runtime_is_told_so_and_nothing_changes() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("cniVersion", json!("1.1.0"));
        let scene = Scene { node, pod: &pod, sandbox };
        let rootless = ["unshare", "--user", "--map-root-user"].map(OsString::from);
        for (words, verb, before) in VERBS {
            scene.prepare(*before);
            let reply = scene.call(verb).wrapped(&rootless).run();
            if ["VERSION", "DEL of an unknown container"].contains(words) {
                assert_eq!(reply.code, Some(0), "{words}: {reply:?}");
                continue;
            }
            // Where the kernel lets everybody read maps, CHECK can compare.
            if reply.code != Some(0) || !words.contains("nothing is to be repaired") {
                assert_eq!(reply.code, Some(1), "{words}: {reply:?}");
                let details = reply.error()["details"].as_str().expect("details").to_owned();
                assert!(details.contains("rootless"), "{words}: {details}");
            }
            scene.assert_unchanged(*before, words);
        }
        scene.prepare(Before::Bare);
    });
}
