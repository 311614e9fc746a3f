//! What happens in the demo, in order: two pods are added, requests go both ways, a third pod in TPROXY mode
//! is asked, promises are checked, a sidecar is taken away, and the pods are deleted.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use harness::Family;
use harness::chain::{Chain, mesh_conflist};
use harness::progress::step;
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::app::{Answered, Outcome};
use crate::checks;
use crate::pod::{App, Pod, REDIRECT, Running, Sidecar, TPROXY};
use crate::report::{Exchange, Fact, Report};

/// The pods' addresses.
const SUBNETS: [&str; 2] = ["10.72.0.0/24", "fd72:1::/64"];

/// Plays the demo in the namespaces of the calling process, prints what was found and tells whether it was as
/// promised.
pub(crate) fn play(dir: &Path, cgroup: &Path, json: bool) -> Result<ExitCode> {
    step("a node: bpf file system, CNI plugins, network", || prepare(dir))?;
    let chain = step("redirect-cni last in a chain of bridge and host-local", || chain(dir))?;
    let mut client = start(("client", REDIRECT), 1, dir, cgroup, &chain)?;
    let mut server = start(("server", REDIRECT), 2, dir, cgroup, &chain)?;
    let mut exchanges = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for family in Family::ALL {
            let mut pair = [&mut client, &mut server];
            let [from, to] = pair.get_disjoint_mut([from, to])?;
            exchanges.push(exchange(from, to, family)?);
        }
    }
    let mut shown = start(("tproxy", TPROXY), 3, dir, cgroup, &chain)?;
    for family in Family::ALL {
        exchanges.push(exchange(&mut client, &mut shown, family)?);
    }
    let pods = [&client.pod, &server.pod, &shown.pod];
    let mut found = step("what is in the pods, and what is not", || checks::inside(&pods))?;
    found.extend(step("without a sidecar", || checks::fail_closed(&mut client, &mut server))?);
    let guarded = harness::guarded(&dir.join("bpf")).context("reading the guard's counters")?;
    ensure!(guarded == 0, "the guard caught {guarded} packets that had gone around a sidecar");
    found.push(step("DEL", || delete(dir, &chain, [client, server, shown]))?);
    let report = Report { proxy: Sidecar::describe(), exchanges, checks: found };
    print(&report, json)?;
    let broken = report.broken();
    for row in &broken {
        eprintln!("demo: not as promised: {row}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, json: bool) -> Result<()> {
    let text =
        if json { serde_json::to_string_pretty(report)? + "\n" } else { format!("\n{}", report.to_text()) };
    print!("{text}");
    Ok(())
}

/// The mounts of a node, in a mount namespace that goes away with us.
fn prepare(dir: &Path) -> Result<()> {
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting a tmpfs")?;
    for sub in ["bpf", "run", "netns", "leases"] {
        fs::create_dir(dir.join(sub))?;
    }
    let bpffs = dir.join("bpf");
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("mounting a bpf file system")?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("starting `ip`")?;
    ensure!(status.success(), "`ip link set lo up` failed: {status}");
    // While the bridge's address is being checked for duplicates, which takes seconds, the node would dial
    // from ::1.
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").context("switching duplicate detection off")
}

fn chain(dir: &Path) -> Result<Chain> {
    let redirect = json!({
        "type": "redirect-cni",
        "capabilities": { "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true },
        "podSource": "annotations",
        "bpffsRoot": dir.join("bpf"),
        "stateDir": dir.join("run"),
        "logLevel": "warn",
    });
    let plugin = harness::binary("redirect-cni");
    let plugins = plugin.parent().context("a binary is in a directory")?;
    Chain::new(mesh_conflist(&dir.join("leases"), SUBNETS, &redirect), &[plugins])
}

/// Makes a pod and starts its containers.
fn start(
    named: (&str, &'static str),
    number: u8,
    dir: &Path,
    cgroup: &Path,
    chain: &Chain,
) -> Result<Running> {
    let name = named.0;
    let pod = step(format!("{name} pod: cgroup, network namespace, ADD"), || {
        Pod::add(named, number, dir, cgroup, chain)
    })?;
    let app = step(format!("{name} pod: application (uid 1000)"), || App::start(&pod))?;
    let sidecar = match step(format!("{name} pod: sidecar (uid 1337)"), || Sidecar::start(&pod)) {
        // Where its sockets are not made transparent it cannot start: a promise that is not kept.
        Err(error) if named.1 == TPROXY => {
            eprintln!("demo: {error:#}");
            None
        }
        other => Some(other?),
    };
    Ok(Running { pod, app, sidecar })
}

/// The application of one pod makes a request to the application of the other.
fn exchange(from: &mut Running, to: &mut Running, family: Family) -> Result<Exchange> {
    let direction = format!("{} -> {}", from.pod.name, to.pod.name);
    let (dst, family) = (to.pod.serves_at(family)?, family.name());
    let facts = step(format!("{direction} over {family}"), || {
        let mut facts = vec![Fact::is(&application(from), "dialled", dst, dst)];
        match from.app.get(dst)? {
            Outcome::Answered(answered) => facts.extend(facts_of(from, to, dst, &answered)?),
            Outcome::Failed { message, .. } => {
                let promised = to.pod.name.clone();
                facts.push(Fact::new(&application(from), "got an answer from the", message, promised, false));
            }
        }
        Ok(facts)
    })?;
    Ok(Exchange { direction, family, facts })
}

/// What everybody saw of a request that was answered, beside what they had to see.
fn facts_of(from: &mut Running, to: &mut Running, dst: SocketAddr, saw: &Answered) -> Result<Vec<Fact>> {
    let client_ip = from.pod.ip(Family::of(&dst.ip()))?;
    // Where Envoy connects to the application from: how a connection that has been through it is known.
    let passthrough: IpAddr = if dst.is_ipv6() { "::6" } else { "127.0.0.6" }.parse()?;
    let (client, server) = (application(from), application(to));
    let answered_by = format!("{} pod", saw.server.pod);
    let ok = answered_by == to.pod.name;
    let mut facts = vec![
        Fact::new(&client, "got an answer from the", answered_by, to.pod.name.clone(), ok),
        Fact::is(&client, "is connected to (getpeername)", saw.peer, dst),
        Fact::is_at(&client, "connected from (getsockname)", saw.local, client_ip),
    ];
    facts.extend(sidecar_facts(from, "outbound", dst, |who, seen| Fact::is(who, "client", seen, saw.local)));
    facts.extend(sidecar_facts(to, "inbound", dst, |who, seen| Fact::is_at(who, "client", seen, client_ip)));
    facts.push(Fact::is(&server, "was reached at (getsockname)", saw.server.local, dst));
    facts.push(match to.pod.mode {
        TPROXY => Fact::is_at(&server, "by its client (accept), at", saw.server.peer, client_ip),
        _ => Fact::is_at(&server, "by its sidecar, from", saw.server.peer, passthrough),
    });
    Ok(facts)
}

/// What the sidecar of a pod logged about the request.
fn sidecar_facts(
    running: &mut Running,
    way: &str,
    dst: SocketAddr,
    client: impl FnOnce(&str, SocketAddr) -> Fact,
) -> Vec<Fact> {
    let who = format!("The sidecar of the {}, {way}", running.pod.name);
    match running.sidecar.as_mut().context("it was stopped").and_then(Sidecar::captured) {
        Ok(seen) => {
            vec![Fact::is(&who, "original destination", seen.original_dst, dst), client(&who, seen.client)]
        }
        Err(error) => {
            vec![Fact::new(&who, "original destination", format!("{error:#}"), dst.to_string(), false)]
        }
    }
}

fn application(running: &Running) -> String {
    format!("The application in the {}", running.pod.name)
}

/// Ends the containers, deletes the pods as a runtime does, and looks for what is left.
fn delete(dir: &Path, chain: &Chain, pods: [Running; 3]) -> Result<checks::Check> {
    for Running { pod, app, sidecar } in pods {
        drop(app);
        sidecar.map_or(Ok(()), Sidecar::stop)?;
        chain.del(&pod.sandbox, &pod.result)?;
    }
    checks::nothing_left(dir)
}
