//! Also of section 3: wrk in another pod, through a real Envoy to nginx beside it: an inbound connection, in
//! REDIRECT and in TPROXY mode. Envoy copies bytes, so each connection of the client is one to nginx as well.
//!
//! In TPROXY mode Envoy goes on as its client (`original_src`). With iptables it runs as root with all
//! capabilities for that, here it has none.

use anyhow::{Result, ensure};
use harness::envoy::{Bootstrap, Envoy, Families, OriginalSrc};
use harness::{Capabilities, Node, Pod, User};

use crate::plugin;
use crate::proxied::{LOADS, Nginx, PORT, Stages, wrk};
use crate::results::Results;
use crate::rules::{self, Backend};
use crate::scale::Scale;

/// How the pod of nginx is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// By Istio's rules, in TPROXY mode or not.
    Iptables(bool),
    /// By the programs of this project, the same.
    Ours(bool),
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Iptables(false), Mode::Iptables(true), Mode::Ours(false), Mode::Ours(true)];

    const fn label(self) -> &'static str {
        match self {
            Mode::Iptables(false) => "iptables-legacy",
            Mode::Iptables(true) => "iptables-legacy, TPROXY",
            Mode::Ours(false) => "redirect-cni",
            Mode::Ours(true) => "redirect-cni, TPROXY",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Mode::Iptables(false) => "iptables",
            Mode::Iptables(true) => "iptables-tproxy",
            Mode::Ours(false) => "ours",
            Mode::Ours(true) => "ours-tproxy",
        }
    }

    const fn tproxy(self) -> bool {
        matches!(self, Mode::Iptables(true) | Mode::Ours(true))
    }

    /// With Istio's rules the sidecar of TPROXY mode is root, as the injector writes it.
    const fn sidecar(self) -> (User, Capabilities) {
        match self {
            Mode::Iptables(true) => (User::TPROXY, Capabilities::OfUser),
            _ => (User::PROXY, Capabilities::None),
        }
    }
}

/// A pod with nginx and Envoy in it. They end before the pod.
struct Server {
    mode: Mode,
    _envoy: Envoy,
    _nginx: Nginx,
    url: String,
    _pod: Pod,
}

/// Measures all loads; without an Envoy in the cache there is nothing to measure.
pub(crate) fn run(node: &Node, scale: &Scale, results: &mut Results) -> Result<()> {
    if Envoy::find().is_none() {
        eprintln!("    left out: there is no Envoy in the cache, run `cargo xtask setup mesh`");
        return Ok(());
    }
    let client = node.pod("inbound-client");
    client.netns().sysctl("net/ipv4/tcp_max_tw_buckets", "2000");
    let servers: Vec<Server> =
        Mode::ALL.iter().map(|mode| Server::new(node, *mode)).collect::<Result<_>>()?;
    let stages = Stages {
        id: "inbound",
        title: "wrk from outside through Envoy to nginx",
        label: |server: &Server| server.mode.label(),
    };
    stages.measure(&servers, scale, results, |server, load| wrk(&client, &server.url, load, scale.seconds))
}

impl Server {
    fn new(node: &Node, mode: Mode) -> Result<Server> {
        let pod = node.pod(&format!("inbound-{}", mode.word()));
        // Else closed connections fill the table of those that wait, which slows every mode down.
        pod.netns().sysctl("net/ipv4/tcp_max_tw_buckets", "2000");
        match mode {
            Mode::Iptables(false) => rules::apply(pod.netns(), Backend::Legacy, &[])?,
            Mode::Iptables(true) => rules::apply_tproxy(pod.netns(), Backend::Legacy)?,
            Mode::Ours(false) => drop(plugin::add(node, &pod, &[])?),
            Mode::Ours(true) => drop(plugin::add_tproxy(node, &pod)?),
        }
        let bootstrap = Bootstrap {
            families: Families::V4,
            access_log: false,
            original_src: mode.tproxy().then_some(OriginalSrc::Address),
            ..Bootstrap::default()
        };
        let container = pod.container("istio-proxy");
        let place = (pod.netns(), container.as_path());
        let envoy = Envoy::start_as(mode.sidecar(), pod.name(), place, &bootstrap, node.dir())?;
        let nginx = Nginx::start(&pod, node.dir())?;
        let url = format!("http://{}:{PORT}/", pod.ip4());
        check(node, mode, &url)?;
        Ok(Server { mode, _envoy: envoy, _nginx: nginx, url, _pod: pod })
    }
}

/// Waits until nginx answers through Envoy.
fn check(node: &Node, mode: Mode, url: &str) -> Result<()> {
    let probe = node.pod(&format!("probe-{}", mode.word()));
    let answers = || wrk(&probe, url, &LOADS[0], 1).is_ok_and(|outcome| outcome.per_second > 0.0);
    ensure!((0..5).any(|_| answers()), "{}: nginx does not answer", mode.label());
    Ok(())
}
