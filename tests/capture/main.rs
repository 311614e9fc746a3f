//! The capture contract beyond the ordinary `connect()`: DNS in all its ways, the ways around a connect hook,
//! large policies, and the tools that show what is captured (`explain`, `trace`, `upgrade`).
//!
//! Run as root with `--test-threads=1`.

mod dns;
mod earlier;
mod large;
mod server;
mod shown;
mod tools;
mod unusual;
mod userns;

use std::path::Path;
use std::process::Command;

use harness::unprivileged::unprivileged;
use harness::{Pod, User};

/// A command that runs in the pod, in its namespace and cgroup, as a user without capabilities.
fn in_pod(pod: &Pod, program: &Path, user: User) -> Command {
    let mut command = unprivileged(program, user).expect("the program exists");
    pod.netns().enter(&mut command, Some(&pod.container("app")));
    command
}

/// Runs a command to its end and returns what it printed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text
}
