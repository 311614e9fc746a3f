//! What each verb needs: it works with all capabilities dropped but those that the table in SECURITY.md
//! names, and says why where one of them is missing.

use std::fs;
use std::process::Command;

use harness::cli::Outcome;
use harness::{Node, Pod, binary, kernel_test};

/// A verb, and what is done before it by somebody who may do everything.
struct Verb {
    name: &'static str,
    before: &'static [&'static [&'static str]],
    arguments: &'static [&'static str],
}

const DETACH: &[&str] = &["detach", "--force", "--id", "pod"];
const UNINSTALL: &[&str] = &["uninstall", "--force"];

/// `POD` stands for what names the pod to attach.
const VERBS: &[Verb] = &[
    Verb { name: "install", before: &[DETACH, UNINSTALL], arguments: &["install"] },
    Verb { name: "attach", before: &[&["install"], DETACH], arguments: &["attach", "POD"] },
    Verb { name: "list", before: &[&["attach", "POD"]], arguments: &["list"] },
    Verb { name: "show", before: &[&["attach", "POD"]], arguments: &["show", "pod"] },
    Verb { name: "stats", before: &[&["attach", "POD"]], arguments: &["stats", "pod"] },
    Verb { name: "upgrade", before: &[&["attach", "POD"]], arguments: &["upgrade"] },
    Verb { name: "detach", before: &[&["install"], &["attach", "POD"]], arguments: DETACH },
    Verb { name: "gc", before: &[&["attach", "POD"]], arguments: &["gc"] },
    Verb { name: "uninstall", before: &[&["install"], DETACH], arguments: UNINSTALL },
];

fn arguments(command: &mut Command, node: &Node, pod: &Pod, arguments: &[&str]) {
    command.arg("--bpffs").arg(node.bpffs()).arg("--state-dir").arg(node.state_dir());
    for argument in arguments {
        match *argument {
            "POD" => {
                command.args(["--id", "pod", "--cgroup"]).arg(pod.cgroup());
                command.arg("--netns").arg(pod.netns().path());
            }
            other => drop(command.arg(other)),
        }
    }
}

/// Runs a verb with these capabilities and no others.
fn run(node: &Node, pod: &Pod, verb: &Verb, capabilities: &[&str]) -> Outcome {
    for before in verb.before {
        let mut command = Command::new(binary("redirect"));
        arguments(&mut command, node, pod, before);
        let _ = Outcome::of(&mut command);
    }
    let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", &format!("--bounding-set=-all{set}"), "--"]).arg(binary("redirect"));
    arguments(&mut command, node, pod, verb.arguments);
    Outcome::of(&mut command)
}

/// The rows of SECURITY.md: verb, capabilities.
fn documented() -> Vec<(String, Vec<String>)> {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../SECURITY.md")).expect("SECURITY.md");
    let section = text.split_once("## What each verb needs\n").expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = rows.map(|row| row.split('|').skip(1).map(words).collect::<Vec<_>>());
    rows.flat_map(|cells| cells[0].clone().into_iter().map(move |verb| (verb, cells[1].clone()))).collect()
}

#[test]
fn each_verb_works_with_the_capabilities_of_the_table_and_with_no_less() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let documented = documented();
        assert_eq!(documented.len(), VERBS.len(), "{documented:?}");
        for verb in VERBS {
            let (_, needed) = documented.iter().find(|(name, _)| name == verb.name).expect(verb.name);
            let short: Vec<String> =
                needed.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
            let all: Vec<&str> = short.iter().map(String::as_str).collect();
            let outcome = run(node, &pod, verb, &all);
            assert_eq!(outcome.code, Some(0), "{} with {all:?}: {outcome:?}", verb.name);
            for missing in &all {
                let rest: Vec<&str> = all.iter().copied().filter(|one| one != missing).collect();
                let outcome = run(node, &pod, verb, &rest);
                assert_eq!(outcome.code, Some(1), "{} without {missing}: {outcome:?}", verb.name);
                let text = outcome.stderr.to_lowercase();
                assert!(
                    text.starts_with("redirect: ") && (text.contains("cap_") || text.contains("permi")),
                    "{} without {missing}: {outcome:?}",
                    verb.name
                );
            }
        }
        // The last verb of the table has left nothing attached or installed.
        assert!(!node.bpffs().join("redirect-cni").exists());
    });
}
