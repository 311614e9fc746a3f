//! What is shipped, on a throw-away node with containerd: the image as the chart's DaemonSet says (arguments,
//! mounts, capabilities and probes are those that Helm renders), and docs/install.md from nothing to the
//! first meshed pod. The node, its API server and its kubelet are of these tests.
//!
//! On the stage this program is the first process. The same program is what the runtime takes for runc, and
//! the application in a pod.

mod debian;
mod node;
mod page;
mod scenario;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use harness::runtime::{runc, tool};
use harness::stage;

/// A test, by the end of its name.
type Test = (&'static str, fn(&node::Node) -> Result<()>);

const TESTS: [Test; 3] = [
    ("the_image_runs_as_the_daemon_set_says_and_pods_are_redirected", scenario::run),
    ("the_page_is_followed_with_packages_to_the_first_meshed_pod_and_back", page::with_packages),
    ("the_page_is_followed_with_helm_to_the_first_meshed_pod", page::with_helm),
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let role = arguments.first().and_then(|role| role.to_str()).unwrap_or_default();
    let outcome = match role {
        "runc" => runc::become_runc(&arguments[1..]).map(|()| ExitCode::FAILURE),
        "serve" | "get" => tool::run(&arguments),
        "inside" => inside(&arguments[1..]).map(|()| ExitCode::SUCCESS),
        _ => Ok(run_tests(&arguments)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the tests whose name has one of the words in it, and reports as Rust's own test runner does.
fn run_tests(arguments: &[OsString]) -> ExitCode {
    let words: Vec<_> =
        arguments.iter().filter_map(|word| word.to_str()).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let (mut passed, mut failed) = (0, 0);
    for (name, _) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        // Afterwards the machine must be as before.
        let outcome =
            stage::test("image", |dir, cgroup| vec!["inside".into(), name.into(), dir.into(), cgroup.into()]);
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => (passed += 1, println!("test {name} ... ok ({seconds:.1} s)")),
            Err(error) => (failed += 1, println!("test {name} ... FAILED ({seconds:.1} s)\n{error:#}")),
        };
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn inside(arguments: &[OsString]) -> Result<()> {
    stage::enter()?;
    let [name, dir, cgroup] = arguments else { bail!("expected three arguments") };
    let (_, run) = TESTS.iter().find(|(test, _)| **name == **test).context("no such test")?;
    let node = node::Node::start(Path::new(dir), Path::new(cgroup))?;
    run(&node).with_context(|| node.how_it_went())
}
