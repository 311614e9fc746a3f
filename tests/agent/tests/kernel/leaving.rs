//! The plugin leaves a node with pods on it: the entry first, and the plugin and its programs when the last
//! redirected pod is gone.

use std::fs;
use std::process::Command;

use harness::chain::Chain;
use harness::cli::Outcome;
use harness::{Family, Node, Pod, Process, Sidecar, kernel_test};
use serde_json::{Value, json};

use super::place::{Place, sandbox};
use super::{Other, World};
use crate::driver::until;
use crate::shown::get;

/// A node with the plugin, and one pod that the plugin redirects.
struct Redirected<'a> {
    node: &'a Node,
    place: Place,
    /// The list as it was before us.
    before: String,
    chain: Chain,
    pod: Pod,
    app: Process,
    other: Other,
    _sidecar: Sidecar,
}

impl<'a> Redirected<'a> {
    fn new(world: &World<'a>) -> Redirected<'a> {
        let node = world.node;
        let place = Place::new(node.dir());
        let before = fs::read_to_string(place.file()).unwrap();
        let keys =
            json!({ "podSource": "annotations", "bpffsRoot": node.bpffs(), "stateDir": node.state_dir() });
        let arguments = place.arguments(&keys, &[]);
        let agent = world.agent(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let chain = place.chain();
        drop(agent);
        let (pod, other) = (node.pod("web"), Other::new(node));
        chain.add(&sandbox(&pod)).unwrap();
        let (sidecar, app) = (pod.sidecar(), pod.app());
        Redirected { node, place, before, chain, pod, app, other, _sidecar: sidecar }
    }

    /// The entry is out, everything that the pod needs is there, and the pod is captured.
    #[track_caller]
    fn assert_half_way(&self) {
        assert_eq!(fs::read_to_string(self.place.file()).unwrap(), self.before);
        assert!(self.place.bin().join("redirect-cni").exists(), "the runtime needs it to delete the pod");
        assert!(self.node.bpffs().join("redirect-cni").exists());
        assert!(
            self.other.captures(&self.app, Family::V4, 8080)
                && self.other.captures(&self.app, Family::V6, 8080)
        );
    }

    fn is_gone(&self) -> bool {
        !self.place.bin().join("redirect-cni").exists() && !self.node.bpffs().join("redirect-cni").exists()
    }

    fn uninstall(&self) -> Value {
        let mut command: Command = self.node.redirect();
        command.args(["--output", "json", "uninstall", "--node"]).args(self.place.dirs());
        let outcome = Outcome::of(&mut command);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        serde_json::from_str(&outcome.stdout).expect("JSON")
    }

    /// The runtime deletes the pod by the list that it added it with.
    fn delete(&self) {
        self.chain.del(&sandbox(&self.pod), &Value::Null).unwrap();
    }
}

#[test]
fn uninstall_takes_the_entry_first_and_the_plugin_when_the_last_pod_is_gone() {
    kernel_test(|node| {
        let world = World::new(node);
        let there = Redirected::new(&world);
        let file = there.place.file();
        for changed in [json!([file]), json!([])] {
            let said = there.uninstall();
            assert_eq!(said, json!({ "changed": changed, "pods": 1, "removed": false }));
            there.assert_half_way();
        }
        there.delete();
        assert!(!there.is_gone(), "the verb removes, DEL does not");
        for _ in 0..2 {
            assert_eq!(there.uninstall(), json!({ "changed": [], "pods": 0, "removed": true }));
            assert!(there.is_gone());
            assert_eq!(fs::read_to_string(&file).unwrap(), there.before);
        }
    });
}

#[test]
fn uninstall_that_cannot_change_the_configuration_leaves_plugin_and_programs() {
    kernel_test(|node| {
        let world = World::new(node);
        let there = Redirected::new(&world);
        there.delete();
        let missing = node.dir().join("nowhere");
        let mut command = node.redirect();
        command.args(["uninstall", "--node", "--cni-conf-dir"]).arg(&missing);
        command.arg("--cni-bin-dir").arg(there.place.bin());
        let outcome = Outcome::of(&mut command);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("nowhere"), "{outcome:?}");
        // The entry may still be in a list that the runtime reads, so what it calls stays.
        assert!(there.place.has_entry() && !there.is_gone());
        there.uninstall();
        assert!(there.is_gone());
    });
}

#[test]
fn an_agent_that_removes_the_entry_waits_for_the_last_pod_and_keeps_the_entry_out() {
    kernel_test(|node| {
        let world = World::new(node);
        let there = Redirected::new(&world);
        let with_entry = fs::read_to_string(there.place.file()).unwrap();
        let dirs = there.place.dirs();
        let arguments: Vec<&str> =
            ["--remove-entry"].into_iter().chain(dirs.iter().map(String::as_str)).collect();
        let _agent = world.agent(&arguments);
        until("the entry is out", || !there.place.has_entry());
        there.assert_half_way();
        until("the agent is ready", || get(world.address, "/readyz").0 == 200);
        // Somebody brings the old file back.
        fs::write(there.place.file(), &with_entry).unwrap();
        until("the entry is out again", || !there.place.has_entry());
        there.assert_half_way();
        until("the log says that it waits", || world.log().contains("the plugin stays to delete them"));
        there.delete();
        until("plugin and programs are gone", || there.is_gone());
        until("the log says so", || world.log().contains("are off this node"));
        assert_eq!(get(world.address, "/readyz").0, 200);
        assert!(!there.place.has_entry());
    });
}
