//! A node on which everything of ours comes and goes: agents of two versions take turns, each with its own
//! plugin and programs, each killed in the middle of its work, and `redirect upgrade` in between.
//!
//! The other version is a build with another ABI version, so with maps, pins and programs of its own. Every
//! turn is therefore a whole upgrade, and the next one the way back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use harness::binary;
use harness::chain::Chain;
use harness::cli::Outcome;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redirect_user::kernel::pins::ABI_VARIABLE;
use serde_json::json;

use super::World;
use super::place::Place;
use crate::driver::{Agent, until, until_within};

/// The ABI versions of the two builds.
const VERSIONS: [u32; 2] = [redirect_common::ABI_VERSION, redirect_common::ABI_VERSION + 1];
/// A turn brings all pods over under the node's lock. Between two turns those that wait for it get it.
const REST: Duration = Duration::from_secs(1);
/// A busy machine's trial and upgrade of all pods.
const PATIENCE: Duration = Duration::from_secs(60);

/// The node's directories, and what each version brings along. It may be used by several threads.
pub(crate) struct Disorder {
    place: Place,
    bpffs: PathBuf,
    state: PathBuf,
    kubeconfig: PathBuf,
    stop: AtomicBool,
    rounds: AtomicU32,
}

impl Disorder {
    pub(crate) fn new(world: &World<'_>) -> Disorder {
        let node = world.node;
        let disorder = Disorder {
            place: Place::new(node.dir()),
            bpffs: node.bpffs().to_owned(),
            state: node.state_dir(),
            kubeconfig: world.api.kubeconfig(node.dir()),
            stop: AtomicBool::new(false),
            rounds: AtomicU32::new(0),
        };
        for version in VERSIONS {
            disorder.write_plugin(version);
        }
        disorder
    }

    fn plugin(&self, version: u32) -> PathBuf {
        self.place.dir.join(format!("plugin-v{version}"))
    }

    /// The plugin of one version: the binary, told its version by a script.
    fn write_plugin(&self, version: u32) {
        let (path, real) = (self.plugin(version), binary("redirect-cni"));
        let script = format!("#!/bin/sh\nexec env {ABI_VARIABLE}={version} {}\n", real.display());
        fs::write(&path, script).expect("a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
    }

    /// The tool of one version.
    fn redirect(&self, version: u32) -> Command {
        let mut command = Command::new(binary("redirect"));
        command.arg("--bpffs").arg(&self.bpffs).arg("--state-dir").arg(&self.state);
        command.env(ABI_VARIABLE, version.to_string());
        command
    }

    /// The agent of one version, which keeps its plugin, its entry and its programs on the node.
    pub(crate) fn agent(&self, version: u32) -> Agent {
        let mut keys = json!({ "podSource": "annotations", "dnsCapture": true });
        (keys["bpffsRoot"], keys["stateDir"]) = (json!(self.bpffs), json!(self.state));
        let plugin = self.plugin(version).display().to_string();
        let more = ["--verify", "--repair-pods", "--plugin", &plugin];
        let arguments = self.place.arguments(&keys, &more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Agent::start_on(self.redirect(version), &self.place.dir, &self.kubeconfig, &arguments)
    }

    /// Whether plugin and programs are those of this version.
    fn has(&self, version: u32) -> bool {
        let plugin = fs::read(self.place.bin().join("redirect-cni")).ok();
        let programs = self.bpffs.join(format!("redirect-cni/v{version}/object"));
        plugin == fs::read(self.plugin(version)).ok() && fs::symlink_metadata(programs).is_ok()
    }

    /// The node as an agent of the first version leaves it, and the chain that a runtime finds there.
    pub(crate) fn installed(&self) -> Chain {
        let _agent = self.agent(VERSIONS[0]);
        until("plugin and programs are there", || self.has(VERSIONS[0]));
        self.place.chain()
    }

    /// One round: the other version's agent comes, brings its own, and is killed. Of four rounds two are cut
    /// short: the agent is killed before it is done, and the tool does its work.
    fn round(&self, number: u32) {
        let version = VERSIONS[usize::from(number.is_multiple_of(2))];
        let agent = self.agent(version);
        if number % 4 < 2 {
            until_within(PATIENCE, "the other version is there", || self.has(version));
        }
        kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGKILL).expect("it is killed");
        drop(agent);
        let upgraded = Outcome::of(self.redirect(version).arg("upgrade"));
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
        std::thread::sleep(REST);
    }

    /// Does `work` while round follows round, and leaves the node with the first version. What `work`
    /// returned, and how many rounds there were.
    pub(crate) fn during<T>(&self, work: impl FnOnce(&dyn Fn() -> u32) -> T) -> (T, u32) {
        let done = std::thread::scope(|scope| {
            let rounds = scope.spawn(|| {
                while !self.stop.load(Ordering::Relaxed) {
                    self.round(self.rounds.load(Ordering::Relaxed));
                    self.rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let stop = Stop(&self.stop);
            let done = work(&|| {
                assert!(!rounds.is_finished(), "the rounds have ended early");
                self.rounds.load(Ordering::Relaxed)
            });
            drop(stop);
            rounds.join().expect("every round went as it should");
            done
        });
        let upgraded = Outcome::of(self.redirect(VERSIONS[0]).arg("upgrade"));
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
        (done, self.rounds.load(Ordering::Relaxed))
    }
}

/// Ends the rounds, also where the work panics: the scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
