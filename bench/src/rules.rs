//! The rules that Istio gives a pod when it captures everything, and the commands with which its CNI plugin
//! puts them in place.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::netns::NetNs;
use harness::{Family, istio};
use ipnet::IpNet;
use redirect_user::policy::{InterceptionMode, Policy};

/// The two implementations of the iptables commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        }
    }

    /// `ip6tables-legacy-save` and so on.
    pub(crate) fn command(self, family: Family, suffix: &str) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{program}-{}{suffix}", self.name())
    }
}

/// The input of `iptables-restore`: capture everything, with these ranges excluded.
fn text(family: Family, excluded: &[IpNet]) -> String {
    istio::nat(&Policy { exclude_outbound_ip_ranges: excluded.to_vec(), ..Policy::default() }, family)
}

/// One command of the plugin: its line, and what it reads.
#[derive(Debug)]
pub(crate) struct Step {
    program: String,
    arguments: Vec<String>,
    input: String,
}

impl Step {
    fn new(program: String, arguments: &[&str]) -> Step {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Step { program, arguments, input: String::new() }
    }

    /// The command, with its rules on standard input and nothing seen of its output. The lock is the pod's
    /// own, as Istio has it, so that pods do not wait for each other.
    pub(crate) fn command(&self, netns: &NetNs) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env("XTABLES_LOCKFILE", netns.path());
        command.stdin(input_of(&self.input)?).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }
}

/// A file without a name that holds `text`, to be read from its start.
pub(crate) fn input_of(text: &str) -> Result<Stdio> {
    use std::io::{Seek as _, Write as _};
    if text.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = tempfile::tempfile().context("making a file for a command's input")?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// What Istio's plugin runs for one pod, in its order: for each family it looks for the implementation that
/// works (save, version, a rule added and deleted) and for rules that are there already (save), restores its
/// own, and saves once more for its log.
pub(crate) fn steps(backend: Backend) -> Vec<Step> {
    const PROBE: [&str; 8] = ["-t", "filter", "INPUT", "-p", "255", "-j", "DROP", "-A"];
    let save = |family| Step::new(backend.command(family, "-save"), &[]);
    let rule = |family, verb| {
        let [t, filter, chain, rest @ .., _] = PROBE;
        Step::new(backend.command(family, ""), &[&[t, filter, verb, chain], &rest[..]].concat())
    };
    let mut steps = Vec::new();
    for family in Family::ALL {
        let version = Step::new(backend.command(family, "-save"), &["--version"]);
        steps.extend([save(family), version, rule(family, "-A"), rule(family, "-D")]);
    }
    steps.extend([save(Family::V4), save(Family::V6)]);
    steps.extend(Family::ALL.map(|family| restore(backend, family, &[])));
    steps.extend([save(Family::V4), save(Family::V6)]);
    steps
}

fn restore(backend: Backend, family: Family, excluded: &[IpNet]) -> Step {
    let arguments: &[&str] = match backend {
        Backend::Legacy => &["--noflush", "--wait=30"],
        Backend::Nft => &["--noflush"],
    };
    Step { input: text(family, excluded), ..Step::new(backend.command(family, "-restore"), arguments) }
}

/// Gives a namespace the rules of both families, and nothing else.
pub(crate) fn apply(netns: &NetNs, backend: Backend, excluded: &[IpNet]) -> Result<()> {
    load(netns, backend, |family| restore(backend, family, excluded))
}

/// The same in TPROXY mode, with the routes that marked packets take.
pub(crate) fn apply_tproxy(netns: &NetNs, backend: Backend) -> Result<()> {
    let policy = Policy { interception_mode: InterceptionMode::Tproxy, ..Policy::default() };
    istio::route_marked(netns);
    load(netns, backend, |family| Step {
        input: istio::nat(&policy, family) + &istio::mangle(&policy, family),
        ..restore(backend, family, &[])
    })
}

fn load(netns: &NetNs, backend: Backend, restore: impl Fn(Family) -> Step) -> Result<()> {
    for family in Family::ALL {
        let mut command = restore(family).command(netns)?;
        netns.enter(&mut command, None);
        let output = command.stderr(Stdio::piped()).output().context("starting iptables-restore")?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {problem}", backend.command(family, "-restore"));
    }
    Ok(())
}

/// The rules that Istio 1.27 and newer load into `nft` where `nativeNftables` is on, for a pod that captures
/// everything in both families, with a counter in each, as Istio writes them.
pub(crate) fn native() -> String {
    let mut text = String::from("add table inet istio-proxy-nat\n");
    for (chain, hook) in [("prerouting", "prerouting"), ("output", "output")] {
        let _ = writeln!(
            text,
            "add chain inet istio-proxy-nat {chain} {{ type nat hook {hook} priority -100; policy accept; }}"
        );
    }
    for chain in ["istio-inbound", "istio-redirect", "istio-in-redirect", "istio-output"] {
        let _ = writeln!(text, "add chain inet istio-proxy-nat {chain}");
    }
    let mut rule = |chain: &str, matches: &str, verdict: &str| {
        let _ = writeln!(text, "add rule inet istio-proxy-nat {chain} {matches} counter {verdict}");
    };
    rule("istio-inbound", "tcp dport 15008", "return");
    rule("istio-redirect", "meta l4proto tcp", "redirect to :15001");
    rule("istio-in-redirect", "meta l4proto tcp", "redirect to :15006");
    rule("prerouting", "meta l4proto tcp", "jump istio-inbound");
    for port in [15090, 15021, 15020] {
        rule("istio-inbound", &format!("tcp dport {port}"), "return");
    }
    rule("istio-inbound", "meta l4proto tcp", "jump istio-in-redirect");
    rule("output", "", "jump istio-output");
    rule("istio-output", "oifname lo ip saddr 127.0.0.6", "return");
    rule("istio-output", "oifname lo ip6 saddr ::6", "return");
    for owner in ["meta skuid", "meta skgid"] {
        for other in ["ip daddr != 127.0.0.1", "ip6 daddr != ::1"] {
            let own = format!("oifname lo {other} tcp dport != 15008 {owner} 1337");
            rule("istio-output", &own, "jump istio-in-redirect");
        }
        rule("istio-output", &format!("oifname lo {owner} != 1337"), "return");
        rule("istio-output", &format!("{owner} 1337"), "return");
    }
    rule("istio-output", "ip daddr 127.0.0.1", "return");
    rule("istio-output", "ip6 daddr ::1", "return");
    rule("istio-output", "", "jump istio-redirect");
    text
}

/// Gives a namespace those rules.
pub(crate) fn apply_native(netns: &NetNs) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(input_of(&native())?).stdout(Stdio::null()).stderr(Stdio::piped());
    netns.enter(&mut command, None);
    let output = command.output().context("starting nft")?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft -f -: {problem}");
    Ok(())
}
