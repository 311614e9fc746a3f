//! Section 3: wrk, a real Envoy as sidecar, and nginx behind it.
//!
//! The pod that is not redirected has wrk dial a port of its Envoy that has a fixed route to nginx; the other
//! pods' Envoys find the same nginx by the original destination, through the listener that Istio would give
//! them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use harness::envoy::{Bootstrap, Envoy, Families, socket_address};
use harness::unprivileged::unprivileged;
use harness::{Node, Pod, User};
use serde_json::json;

use crate::plugin;
use crate::results::{Measure, Results, Unit};
use crate::rules;
use crate::scale::Scale;
use crate::scene::Mode;

/// Where nginx serves.
pub(crate) const PORT: u16 = 80;
/// The port of the Envoy that is dialled directly.
const DIRECT_PORT: u16 = 15080;

/// A kind of load.
pub(crate) struct Load {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    connections: usize,
    /// Whether every request has a connection of its own.
    fresh: bool,
}

pub(crate) const LOADS: [Load; 3] = [
    Load { id: "one", title: "1 kept connection", connections: 1, fresh: false },
    Load { id: "many", title: "32 kept connections", connections: 32, fresh: false },
    Load {
        id: "fresh",
        title: "a new connection for each request, 8 at a time",
        connections: 8,
        fresh: true,
    },
];

/// What wrk says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) per_second: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// A pod with Envoy in it.
struct Meshed {
    mode: Mode,
    // Ends before its pod.
    _envoy: Envoy,
    pod: Pod,
    url: String,
}

/// Measures all loads; without an Envoy in the cache there is nothing to measure.
pub(crate) fn run(node: &Node, scale: &Scale, results: &mut Results) -> Result<()> {
    if Envoy::find().is_none() {
        eprintln!("    left out: there is no Envoy in the cache, run `cargo xtask setup mesh`");
        return Ok(());
    }
    let server = node.pod("nginx");
    let _nginx = Nginx::start(&server, node.dir())?;
    let pods: Vec<Meshed> =
        Mode::ALL.iter().map(|mode| Meshed::new(node, *mode, &server)).collect::<Result<_>>()?;
    let stages =
        Stages { id: "wrk", title: "wrk through Envoy to nginx", label: |pod: &Meshed| pod.mode.label() };
    stages.measure(&pods, scale, results, |pod, load| pod.wrk(load, scale.seconds))
}

/// What the loads are tried on, and how their measures are named.
pub(crate) struct Stages<S> {
    /// The first part of a measure's id.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) label: fn(&S) -> &'static str,
}

impl<S> Stages<S> {
    /// Every load on every stage, each round beginning with another stage.
    pub(crate) fn measure(
        &self,
        stages: &[S],
        scale: &Scale,
        results: &mut Results,
        wrk: impl Fn(&S, &Load) -> Result<Outcome>,
    ) -> Result<()> {
        for load in &LOADS {
            let mut outcomes: Vec<Vec<Outcome>> = stages.iter().map(|_| Vec::new()).collect();
            for round in 0..scale.loads {
                for step in 0..stages.len() {
                    let index = (round + step) % stages.len();
                    outcomes[index].push(wrk(&stages[index], load)?);
                }
            }
            self.report(load, stages, &outcomes, results);
        }
        Ok(())
    }

    fn report(&self, load: &Load, stages: &[S], outcomes: &[Vec<Outcome>], results: &mut Results) {
        for (id, title, unit, read) in [
            ("rate", "requests per second", Unit::PerSecond, (|o| o.per_second) as fn(&Outcome) -> f64),
            ("median", "median latency", Unit::Micros, |o| o.median),
            ("p99", "p99 latency", Unit::Micros, |o| o.p99),
        ] {
            let series = stages
                .iter()
                .zip(outcomes)
                .map(|(stage, outcomes)| ((self.label)(stage), outcomes.iter().map(read).collect()));
            let title = format!("{}, {}: {title}", self.title, load.title);
            results.add(Measure::new(&format!("{}-{}-{id}", self.id, load.id), &title, unit, series));
        }
    }
}

impl Meshed {
    fn new(node: &Node, mode: Mode, server: &Pod) -> Result<Meshed> {
        let pod = node.pod(&format!("meshed-{}", mode.word()));
        // Else closed connections fill the table of those that wait, which slows every mode down.
        pod.netns().sysctl("net/ipv4/tcp_max_tw_buckets", "2000");
        match mode {
            Mode::None => {}
            Mode::Iptables(backend) => rules::apply(pod.netns(), backend, &[])?,
            Mode::Nftables => rules::apply_native(pod.netns())?,
            Mode::Ours => drop(plugin::add(node, &pod, &[])?),
            Mode::Unguarded => drop(plugin::add_unguarded(node, &pod, &[])?),
        }
        let envoy = Envoy::start(
            pod.name(),
            pod.netns(),
            &pod.container("istio-proxy"),
            &bootstrap(server),
            node.dir(),
        )?;
        let url = match mode {
            Mode::None => format!("http://127.0.0.1:{DIRECT_PORT}/"),
            _ => format!("http://{}:{PORT}/", server.ip4()),
        };
        Ok(Meshed { mode, _envoy: envoy, pod, url })
    }

    fn wrk(&self, load: &Load, seconds: u64) -> Result<Outcome> {
        let outcome = wrk(&self.pod, &self.url, load, seconds);
        outcome.with_context(|| format!("{}: {}", self.mode.label(), load.title))
    }
}

/// One load from a pod.
pub(crate) fn wrk(pod: &Pod, url: &str, load: &Load, seconds: u64) -> Result<Outcome> {
    let mut command = unprivileged(Path::new("/usr/bin/wrk"), User::APP)?;
    command.args(["-t1", &format!("-c{}", load.connections), &format!("-d{seconds}s"), "--latency"]);
    if load.fresh {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(url);
    pod.netns().enter(&mut command, Some(&pod.container("app")));
    let output = command.output().context("starting wrk (Debian package wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk {url}: {text}{}", String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| text.into_owned())
}

/// Takes the three figures out of wrk's report.
fn parse(text: &str) -> Result<Outcome> {
    if text.contains("Non-2xx") || text.contains("connect ") {
        bail!("wrk counted errors");
    }
    let field = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        line.and_then(|line| line.split_whitespace().last())
            .with_context(|| format!("wrk says nothing of {name}"))
    };
    let per_second = field("Requests/sec:")?.parse()?;
    Ok(Outcome { per_second, median: micros(field("50%")?)?, p99: micros(field("99%")?)? })
}

/// `123.00us`, `1.23ms` or `1.23s` in microseconds.
fn micros(text: &str) -> Result<f64> {
    for (suffix, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(suffix) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("{text:?} is no time")
}

fn bootstrap(server: &Pod) -> Bootstrap {
    let mut bootstrap = Bootstrap {
        families: Families::V4,
        access_log: false,
        http_ports: vec![PORT],
        ..Bootstrap::default()
    };
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "nginx" } }]);
    let chains = json!([{ "filters": [bootstrap.http_proxy("direct", routes)] }]);
    let endpoint = json!({ "endpoint": { "address": socket_address(&server.ip4().to_string(), PORT) } });
    bootstrap.listeners = vec![bootstrap.listener("direct", DIRECT_PORT, chains)];
    bootstrap.clusters = vec![json!({
        "name": "nginx",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": "nginx", "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })];
    bootstrap
}

/// A running nginx that answers every request with a few bytes.
pub(crate) struct Nginx {
    child: Child,
}

impl Nginx {
    pub(crate) fn start(pod: &Pod, dir: &Path) -> Result<Nginx> {
        let prefix: PathBuf = dir.join(format!("nginx-{}", pod.name()));
        fs::create_dir_all(&prefix)?;
        let conf = prefix.join("nginx.conf");
        fs::write(
            &conf,
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\n\
             events { worker_connections 4096; }\n\
             http { access_log off; keepalive_requests 100000000; client_body_temp_path t; proxy_temp_path t;\n\
             fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;\n\
             server { listen 80; location / { return 200 \"hello\\n\"; } } }\n",
        )?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&prefix).arg("-c").arg(&conf).args(["-e", "stderr"]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(prefix.join("stderr"))?);
        pod.netns().enter(&mut command, Some(&pod.container("nginx")));
        Ok(Nginx { child: command.spawn().context("starting nginx (Debian package nginx-light)")? })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
