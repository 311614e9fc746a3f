//! redirect-cni called by a real container runtime: containerd 1.6 of Debian 12 and 2.1 of a later suite,
//! each with runc, the standard CNI plugins and ours as the last of the chain; pods with a real Envoy.
//!
//! Every test runs on a stage of its own ([`harness::stage`]), where this program is the first process: it
//! makes a [`node`], plays the kubelet ([`kubelet`]) as one of the [`scenarios`] says, and ends; then nothing
//! may be left on the machine. The same program is what containers run ([`harness::runtime::tool`]), what the
//! runtime takes for runc, and a recorder around the plugin ([`plugin`]).

mod kubelet;
mod node;
mod plugin;
mod scenarios;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use harness::runtime::{runc, tool};
use harness::stage;

use node::Release;
use scenarios::SCENARIOS;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let role = arguments.first().and_then(|role| role.to_str()).unwrap_or_default();
    let outcome = match role {
        "runc" => runc::become_runc(&arguments[1..]).map(|()| ExitCode::FAILURE),
        "plugin" => plugin::record(&arguments[1..]),
        "serve" | "get" => tool::run(&arguments),
        "inside" => inside(&arguments[1..]).map(|()| ExitCode::SUCCESS),
        _ => run_tests(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the tests whose name has one of the words in it, and reports as Rust's own test runner does.
/// `--list` only names them, and with `--exact` a name is a word.
fn run_tests(arguments: &[OsString]) -> Result<ExitCode> {
    let (options, words): (Vec<_>, Vec<_>) =
        arguments.iter().filter_map(|word| word.to_str()).partition(|word| word.starts_with('-'));
    let exact = options.contains(&"--exact");
    let wanted = |name: &str| words.iter().any(|word| name == *word || !exact && name.contains(word));
    let mut tests = Vec::new();
    for release in [Release::Installed, Release::Later] {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.releases.contains(&release)) {
            let name = format!("{}::{}", release.name(), scenario.name);
            if words.is_empty() || wanted(&name) {
                tests.push((release, scenario.name, name));
            }
        }
    }
    if options.contains(&"--list") {
        tests.iter().for_each(|(_, _, name)| println!("{name}: test"));
        return Ok(ExitCode::SUCCESS);
    }
    let (mut passed, mut failed) = (0, 0);
    for (release, scenario, name) in tests {
        let started = Instant::now();
        let outcome = run_test(release, scenario);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        match outcome {
            Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
            Err(error) => println!("test {name} ... FAILED ({seconds:.1} s)\n{error:#}"),
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One test on a stage; afterwards the machine must be as before.
fn run_test(release: Release, scenario: &str) -> Result<()> {
    stage::test("containerd", |dir, cgroup| {
        vec!["inside".into(), release.name().into(), scenario.into(), dir.into(), cgroup.into()]
    })
}

/// The test on its stage.
fn inside(arguments: &[OsString]) -> Result<()> {
    stage::enter()?;
    let [release, scenario, dir, cgroup] = arguments else { bail!("expected four arguments") };
    let release = Release::parse(release)?;
    let scenario = SCENARIOS.iter().find(|one| **scenario == *one.name).context("no such scenario")?;
    let (dir, cgroup) = (Path::new(dir), Path::new(cgroup));
    let mut node = node::Node::start(release, scenario.configuration, dir, cgroup)?;
    let outcome = (scenario.run)(&mut node);
    outcome.with_context(|| node.how_it_went())
}
