//! Where and when a run took place, and with which versions.

use std::fs;
use std::process::Command;

use harness::envoy::Envoy;
use serde::Serialize;

/// A description of the machine; what cannot be found out is an empty text.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) virtualised: bool,
    /// Processes that wanted a CPU on average when the run began and when it ended: other work disturbs a
    /// run.
    pub(crate) load: [f64; 2],
    pub(crate) iptables: String,
    pub(crate) nftables: String,
    pub(crate) envoy: String,
    /// Version of what is measured.
    pub(crate) ours: String,
}

impl Machine {
    /// Looks around.
    pub(crate) fn look() -> Machine {
        let cpuinfo = read("/proc/cpuinfo");
        let after = |text: &str, name: &str, separator: char| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(separator))
                .map(|(_, v)| v.trim().trim_matches('"').to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal", ':').unwrap_or_default();
        let kibibytes = memory.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        Machine {
            date: output("date", &["-u", "+%F %H:%M UTC"]),
            cpu: after(&cpuinfo, "model name", ':').unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: kibibytes.unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: after(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_default(),
            virtualised: cpuinfo
                .lines()
                .any(|line| line.starts_with("flags") && line.contains(" hypervisor")),
            load: [load(), 0.0],
            iptables: output("iptables-legacy", &["--version"]),
            nftables: output("nft", &["--version"]),
            ours: env!("CARGO_PKG_VERSION").to_owned(),
            envoy: Envoy::find().and_then(|binary| Envoy::version(&binary)).unwrap_or_default(),
        }
    }

    /// Whether other work was under way when the run began: more than a quarter of the CPUs.
    pub(crate) fn busy(&self) -> bool {
        self.load[0] > 0.25 * self.cpus as f64
    }

    /// Notes how busy the machine is at the end.
    pub(crate) fn note_end(&mut self) {
        self.load[1] = load();
    }
}

fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
