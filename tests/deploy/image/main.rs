//! The image as containerd starts it for the chart's DaemonSet: the arguments, mounts, capabilities and
//! probes are those that Helm renders; the pod's node, its API server and its kubelet are of this test.
//!
//! On the stage this program is the first process. The same program is what the runtime takes for runc.

mod node;
mod scenario;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use harness::runtime::runc;
use harness::stage;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let role = arguments.first().and_then(|role| role.to_str()).unwrap_or_default();
    let outcome = match role {
        "runc" => runc::become_runc(&arguments[1..]).map(|()| ExitCode::FAILURE),
        "inside" => inside(&arguments[1..]).map(|()| ExitCode::SUCCESS),
        _ => Ok(test()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Reports as Rust's own test runner does.
fn test() -> ExitCode {
    let name = "the_image_runs_as_the_daemon_set_says_and_pods_are_redirected";
    let outcome = on_stage();
    let (word, passed) = if outcome.is_ok() { ("ok", 1) } else { ("FAILED", 0) };
    println!("test {name} ... {word}");
    if let Err(error) = &outcome {
        println!("{error:#}");
    }
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        1 - passed
    );
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Afterwards the machine must be as before.
fn on_stage() -> Result<()> {
    stage::test("image", |dir, cgroup| vec!["inside".into(), dir.into(), cgroup.into()])
}

fn inside(arguments: &[OsString]) -> Result<()> {
    stage::enter()?;
    let [dir, cgroup] = arguments else { bail!("expected two arguments") };
    let node = node::Node::start(Path::new(dir), Path::new(cgroup))?;
    scenario::run(&node).with_context(|| node.how_it_went())
}
