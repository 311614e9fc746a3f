//! Where faults happen: a pod with a sidecar and an application that dials out, a peer that dials in, and
//! somebody at each far end who must never hear from them.

use std::ffi::OsString;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Family, Node, Pod, Process, Service, Sidecar, User};

use crate::call::Call;
use crate::sandbox::{Sandbox, assert_nothing_attached};

/// The time between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(5);
/// The application's port, here and at the far end.
const PORT: u16 = 8080;
/// A verb that takes longer than this did not return by itself.
const PATIENCE: Duration = Duration::from_secs(25);

/// What has not come about after this time will not.
const LONG: Duration = Duration::from_secs(20);

/// How a verb ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// Calls the plugin.
    pub(crate) fn of_call(call: &Call) -> Ended {
        let start = Instant::now();
        let reply = call.run();
        Ended { code: reply.code, said: format!("{}{}", reply.stdout, reply.stderr), took: start.elapsed() }
    }

    /// Runs the tool, with words before its command line.
    pub(crate) fn of_tool(command: &Command, words: &[OsString]) -> Ended {
        let (program, rest) = words.split_first().expect("a wrapper");
        let mut wrapped = Command::new(program);
        wrapped.args(rest).arg(command.get_program()).args(command.get_args());
        let start = Instant::now();
        let outcome = Outcome::of(&mut wrapped);
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        Ended { code: outcome.code, said, took: start.elapsed() }
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// What is wrong with any end, in all faults.
    pub(crate) fn problem(&self) -> Option<String> {
        (self.took > PATIENCE).then(|| format!("did not return: {self}"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:?} after {:?}: {}", self.code, self.took, self.said.trim())
    }
}

/// The far ends, and the pods.
pub(crate) struct Scene<'n> {
    pub(crate) node: &'n Node,
    pub(crate) sandbox: Sandbox,
    /// The same pod in a new namespace.
    pub(crate) renewed: Sandbox,
    running: Option<Running>,
    /// At the address that the application dials.
    trap: Process,
    far_away: Pod,
    pod: Pod,
    _new_netns: Pod,
}

/// What runs while a pod is enrolled.
struct Running {
    sidecar: Sidecar,
    /// The application's server.
    app: Process,
    client: Process,
    peer: Process,
}

impl<'n> Scene<'n> {
    pub(crate) fn new(node: &'n Node) -> Scene<'n> {
        let (pod, far_away, new_netns) = (node.pod("web"), node.pod("far-away"), node.pod("renewed"));
        let sandbox = crate::crash::sandbox(node, &pod, "c0ffee");
        let renewed = sandbox.again("decaf", new_netns.netns().path());
        let trap = far_away.process("server", User::APP);
        trap.serve(&Family::ALL.map(|family| far_away.at(family, PORT)), Service::Hangup)
            .expect("set the trap");
        Scene { node, sandbox, renewed, running: None, trap, far_away, pod, _new_netns: new_netns }
    }

    /// A sandbox whose cgroup and namespace are gone, as a runtime calls the plugin for it.
    pub(crate) fn vanished(&self) -> Sandbox {
        Sandbox { id: "vanished".to_owned(), netns: None, ..self.sandbox.clone() }
    }

    /// Enrols the pod and starts what runs in it; nothing if it runs already.
    pub(crate) fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        self.sandbox.add();
        let sidecar = Sidecar::builder(&self.pod).service(Service::Hangup).start();
        let app = self.pod.app();
        app.serve(&Family::ALL.map(|family| self.pod.at(family, PORT)), Service::Hangup).expect("serve");
        let (client, peer) = (self.pod.app(), self.far_away.app());
        client.dial_every(&Family::ALL.map(|family| self.far_away.at(family, PORT)), PAUSE);
        peer.dial_every(&Family::ALL.map(|family| self.pod.at(family, PORT)), PAUSE);
        self.running = Some(Running { sidecar, app, client, peer });
        // They get through, to the sidecar: else a campaign would prove nothing.
        assert_eq!(self.cut_off(), None);
        assert_eq!(self.in_clear(), Vec::<String>::new());
    }

    /// Ends what runs in the pod, then the pod.
    pub(crate) fn stop(&mut self) {
        self.running = None;
        for sandbox in [&self.renewed, &self.sandbox] {
            sandbox.del();
        }
    }

    /// Connections that came past the sidecar since this was asked last.
    pub(crate) fn in_clear(&self) -> Vec<String> {
        let Some(running) = &self.running else { return Vec::new() };
        let _ = running.sidecar.take_seen();
        let out = self.trap.take_seen().into_iter().map(|seen| format!("out in clear: {seen:?}"));
        let inwards = running.app.take_seen().into_iter().map(|seen| format!("in in clear: {seen:?}"));
        out.chain(inwards).collect()
    }

    /// A dialer that does not get through to the sidecar, however long it tries.
    pub(crate) fn cut_off(&self) -> Option<String> {
        let running = self.running.as_ref()?;
        let dialers = [("out", &running.client), ("in", &running.peer)];
        // What was dialled before says nothing about now.
        let _ = dialers.map(|(_, dialer)| dialer.take_dialled());
        dialers.into_iter().find_map(|(way, dialer)| {
            let deadline = Instant::now() + LONG;
            loop {
                let dialled = dialer.take_dialled();
                if dialled.accepted > 0 {
                    return None;
                }
                if Instant::now() > deadline {
                    return Some(format!("{way}: nothing gets through to the sidecar: {dialled:?}"));
                }
                std::thread::sleep(PAUSE);
            }
        })
    }

    /// What is left of pods that were deleted.
    pub(crate) fn left_over(&self) -> Option<String> {
        let looked = catch_unwind(AssertUnwindSafe(|| assert_nothing_attached(self.node)));
        looked.err().map(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "something is left".to_owned(),
        })
    }

    /// As [`Scene::namespace`], when the kernel is done with IPv6. It makes the link-local address and the
    /// routes of both addresses some time after the interface and its address are there.
    pub(crate) fn settled_namespace(&self) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let addresses = self.show(&["-6", "-o", "addr", "show", "dev", "eth0"]);
            let routes = self.show(&["-6", "route", "show", "table", "all"]);
            let settled = addresses.contains("fe80:") && !addresses.contains("tentative");
            let routed = [format!("local {} dev eth0", self.pod.ip6()), "multicast ff00::/8 dev eth0".into()];
            if settled && routed.iter().all(|route| routes.contains(route)) {
                return self.namespace();
            }
            assert!(Instant::now() < deadline, "IPv6 does not come up:\n{addresses}{routes}");
            std::thread::sleep(PAUSE);
        }
    }

    fn show(&self, words: &[&str]) -> String {
        self.pod.netns().output_of(Command::new("ip").args(words))
    }

    /// The pod's namespace as a runtime would find it: addresses, routes, rules.
    pub(crate) fn namespace(&self) -> String {
        let all: [&[&str]; 4] = [
            &["-o", "addr", "show"],
            &["route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["rule", "show"],
        ];
        let all = all.map(|words| self.show(words)).concat();
        // The link-local address comes by itself, some time after the interface.
        let lines = all.lines().filter(|line| !line.contains("fe80:"));
        lines.map(|line| format!("{line}\n")).collect()
    }
}
