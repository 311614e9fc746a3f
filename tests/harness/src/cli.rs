//! The operator's tool `redirect`, run as a process, and the only place that knows the shapes of its JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::binaries::binary;
use crate::node::Node;
use crate::pod::Pod;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end.
    #[must_use]
    pub fn of(command: &mut Command) -> Outcome {
        let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Node {
    /// The command `redirect` with the global options of this node; add the subcommand.
    #[must_use]
    pub fn redirect(&self) -> Command {
        self.redirect_on(self.bpffs())
    }

    /// The same with another directory in the place of the bpffs.
    #[must_use]
    pub fn redirect_on(&self, bpffs: &Path) -> Command {
        let mut command = Command::new(binary("redirect"));
        command.arg("--bpffs").arg(bpffs).arg("--state-dir").arg(self.state_dir());
        command
    }

    /// Enrols a pod, with `flags` for its policy.
    pub fn attach(&self, pod: &Pod, flags: &[&str]) {
        let outcome = Outcome::of(self.attach_command(pod).args(flags));
        assert_eq!(outcome.code, Some(0), "attach {}: {outcome:?}", pod.name());
    }

    /// The command that enrols a pod.
    #[must_use]
    pub fn attach_command(&self, pod: &Pod) -> Command {
        let mut command = self.redirect();
        command.args(["attach", "--id", pod.name()]);
        command.arg("--cgroup").arg(pod.cgroup()).arg("--netns").arg(pod.netns().path());
        command
    }

    /// Takes a pod out again.
    pub fn detach(&self, pod: &Pod) {
        let outcome = Outcome::of(self.redirect().args(["detach", "--force", "--id", pod.name()]));
        assert_eq!(outcome.code, Some(0), "detach {}: {outcome:?}", pod.name());
    }

    /// A pod's counters by the names of `redirect_common::Event`.
    #[must_use]
    pub fn stats(&self, pod: &Pod) -> BTreeMap<String, u64> {
        let value = self.json(&["stats", pod.name()]);
        let pods = value.as_array().expect("stats prints an array of attachments");
        let pod =
            pods.iter().find(|entry| entry["containerId"] == pod.name()).expect("the attachment is listed");
        serde_json::from_value(pod["counters"].clone()).expect("counters are numbers by name")
    }

    /// One counter of a pod.
    #[must_use]
    pub fn count(&self, pod: &Pod, event: redirect_common::Event) -> u64 {
        let stats = self.stats(pod);
        *stats.get(event.label()).unwrap_or_else(|| panic!("no counter {} in {stats:?}", event.label()))
    }

    /// What `redirect list` prints. It fails where something has drifted, and prints all the same.
    #[must_use]
    pub fn list(&self) -> Value {
        let outcome = Outcome::of(self.redirect().args(["list", "--output", "json"]));
        assert!(matches!(outcome.code, Some(0 | 1)), "list: {outcome:?}");
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("list: {error}: {outcome:?}"))
    }

    /// The ids of what is attached.
    #[must_use]
    pub fn attached(&self) -> Vec<String> {
        let value = self.list();
        let list = value.as_array().expect("list prints an array of attachments");
        list.iter()
            .map(|entry| entry["containerId"].as_str().expect("an id is a string").to_owned())
            .collect()
    }

    /// Runs a subcommand with `--output json`.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let outcome = Outcome::of(self.redirect().args(arguments).args(["--output", "json"]));
        assert_eq!(outcome.code, Some(0), "{arguments:?}: {outcome:?}");
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {outcome:?}"))
    }
}
