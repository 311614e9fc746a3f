//! The promises that are not about a single request: what is in the pods and what is not, what happens
//! without a sidecar, and what is left after DEL.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use harness::Family;

use crate::app::{self, Outcome};
use crate::pod::{Pod, Running, Sidecar};
pub(crate) use crate::report::Check;
/// Commands that print the packet filter's rules, each with its own view of them.
const FIREWALLS: [&str; 5] =
    ["nft list ruleset", "iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"];
/// The capability's number, from linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
/// "Connection refused"
const ECONNREFUSED: i32 = 111;

/// What is in the pods while requests go through them.
pub(crate) fn inside(pods: &[&Pod]) -> Result<Vec<Check>> {
    let mut checks = FIREWALLS.iter().map(|command| firewall(pods, command)).collect::<Result<Vec<_>>>()?;
    checks.push(conntrack(pods)?);
    checks.push(capabilities(pods)?);
    checks.push(containers(pods)?);
    Ok(checks)
}

/// One command's view of the rules in all pods.
fn firewall(pods: &[&Pod], line: &str) -> Result<Check> {
    let mut rules = Vec::new();
    for pod in pods {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        pod.netns.enter(command.args(words), None);
        let output =
            command.output().with_context(|| format!("running `{line}`: `cargo xtask setup` installs it"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}` failed in the {}: {}", pod.name, errors.trim());
        let printed = String::from_utf8_lossy(&output.stdout);
        rules.extend(printed.trim().lines().map(|rule| format!("{}: {rule}", pod.name)));
    }
    Ok(Check::nothing(format!("no rule in any pod: `{line}`"), &rules))
}

/// Connection tracking works only where a rule has asked for it.
fn conntrack(pods: &[&Pod]) -> Result<Check> {
    let mut tracked = Vec::new();
    for pod in pods {
        match pod.netns.run(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")) {
            Ok(count) if count.trim() == "0" => {}
            Ok(count) => tracked.push(format!("{}: {}", pod.name, count.trim())),
            // The module is not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("reading nf_conntrack_count"),
        }
    }
    Ok(Check::nothing("no tracked connection (conntrack) in any pod".into(), &tracked))
}

/// What the processes may do, and what they could make themselves able to do.
fn capabilities(pods: &[&Pod]) -> Result<Check> {
    let mut processes = 0;
    let mut having = Vec::new();
    for pod in pods {
        for pid in pod.processes()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let sets = sets_with_net_admin(&status)?;
            having.extend(sets.iter().map(|set| format!("{set} of process {pid} in the {}", pod.name)));
            processes += 1;
        }
    }
    let promise = "no process in any pod has NET_ADMIN or can get it";
    let found = if having.is_empty() { format!("none of {processes}") } else { excerpt(&having) };
    // An application and a sidecar in each pod: fewer would mean that nothing was looked at.
    Ok(Check { promise: promise.into(), found, ok: having.is_empty() && processes >= 2 * pods.len() })
}

/// The capability sets with NET_ADMIN in a process' status. What is only in the bounding set can be gained
/// by starting a privileged program, but not with no_new_privs.
fn sets_with_net_admin(status: &str) -> Result<Vec<&'static str>> {
    let field = |name: &str| {
        let mut values = status.lines().filter_map(|line| line.split_once(":\t"));
        let value = values.find(|(field, _)| *field == name).map(|(_, value)| value.trim());
        value.with_context(|| format!("`{name}` is missing in a process' status"))
    };
    let confined = field("NoNewPrivs")? == "1";
    let mut sets = Vec::new();
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
        let has = u64::from_str_radix(field(set)?, 16)? >> CAP_NET_ADMIN & 1 == 1;
        sets.extend((has && !(confined && set == "CapBnd")).then_some(set));
    }
    Ok(sets)
}

/// What ran in the pods: each container has a cgroup below the pod's.
fn containers(pods: &[&Pod]) -> Result<Check> {
    let lists = pods.iter().map(|pod| pod.containers()).collect::<Result<Vec<_>>>()?;
    let ok = lists.iter().all(|containers| containers == &["app", "istio-proxy"]);
    let mut found: Vec<_> = lists.iter().map(|containers| containers.join(", ")).collect();
    found.dedup();
    let promise = "every pod has two containers, and no init container".into();
    Ok(Check { promise, found: found.join("; "), ok })
}

/// Takes the sidecars away: nothing may go out of, or come into, an enrolled pod past its sidecar.
pub(crate) fn fail_closed(client: &mut Running, server: &mut Running) -> Result<Vec<Check>> {
    let mut checks = vec![outsider(server)?];
    stop(client)?;
    for family in Family::ALL {
        let promise =
            format!("{} without its sidecar: the application is refused, {}", client.pod.name, family.name());
        checks.push(refused(promise, client.app.get(server.pod.serves_at(family)?)?));
    }
    stop(server)?;
    for family in Family::ALL {
        let promise =
            format!("{} without its sidecar: callers are refused, {}", server.pod.name, family.name());
        checks.push(refused(promise, app::get(server.pod.serves_at(family)?)));
    }
    Ok(checks)
}

/// While the sidecar runs, a caller that is not in the mesh reaches the application through it.
fn outsider(server: &mut Running) -> Result<Check> {
    let dst = server.pod.serves_at(Family::V4)?;
    let promise = format!("{}: a caller outside the mesh comes in by the sidecar", server.pod.name);
    let answered = match app::get(dst) {
        Outcome::Answered(answered) => answered,
        Outcome::Failed { message, .. } => return Ok(Check { promise, found: message, ok: false }),
    };
    let captured = match server.sidecar.as_mut().context("the sidecar was stopped")?.captured() {
        Ok(captured) => captured,
        Err(error) => return Ok(Check { promise, found: format!("{error:#}"), ok: false }),
    };
    let found = format!("{} -> {}", captured.client, captured.original_dst);
    let ok = captured.original_dst == dst && captured.client == answered.local;
    Ok(Check { promise, found, ok })
}

fn stop(running: &mut Running) -> Result<()> {
    running.sidecar.take().map_or(Ok(()), Sidecar::stop)
}

fn refused(promise: String, outcome: Outcome) -> Check {
    match outcome {
        Outcome::Answered(answered) => {
            Check { promise, found: format!("answered by {}", answered.peer), ok: false }
        }
        Outcome::Failed { errno, message } => {
            Check { promise, found: message, ok: errno == Some(ECONNREFUSED) }
        }
    }
}

/// What the two plugins with state must not leave: pins of pods, records of attachments, leases.
pub(crate) fn nothing_left(dir: &Path) -> Result<Check> {
    let mut left: Vec<PathBuf> = files(&dir.join("bpf"))?;
    // Programs and maps stay for the next pod; what belongs to a pod is below `pods`.
    left.retain(|path| path.components().any(|part| part.as_os_str() == "pods"));
    left.extend(
        files(&dir.join("run"))?.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "json")),
    );
    // A lease is a file named after its address.
    let leases = files(&dir.join("leases"))?.into_iter();
    left.extend(
        leases.filter(|path| path.file_name().is_some_and(|name| is_address(&name.to_string_lossy()))),
    );
    let left: Vec<_> = left.iter().map(|path| path.display().to_string()).collect();
    Ok(Check::nothing("after DEL no pin, record or lease of the pods is left".into(), &left))
}

fn is_address(name: &str) -> bool {
    // host-local writes IPv6 addresses as they are.
    name.parse::<std::net::IpAddr>().is_ok()
}

/// All files below a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

impl Check {
    /// A promise that there is nothing; `found` is what there is.
    fn nothing(promise: String, found: &[String]) -> Check {
        let ok = found.is_empty();
        Check { promise, found: if ok { "none".into() } else { excerpt(found) }, ok }
    }
}

/// The first things of a list that should be empty: as many as fit into a row.
fn excerpt(list: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = list.len().saturating_sub(SHOWN);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    list[..list.len().min(SHOWN)].join("; ") + &tail
}
