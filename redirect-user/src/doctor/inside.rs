//! One attached pod: what in it goes where no hook of ours sees it.

use std::collections::BTreeSet;
use std::fs;

use super::checks::{
    POD_ADMIN, POD_BRIDGE, POD_CAPTURES, POD_HEALTH, POD_MOUNT, POD_RAW, POD_RULES, POD_SIDECAR,
};
use super::finding::{Finding, Says};
use super::pods::captures_nothing;
use crate::attach::record::Attachment;
use crate::inspect;
use crate::kernel::capabilities;
use crate::node::Node;
use crate::pod::cgroup;
use crate::pod::netns::{Netns, TcpSocket};
use crate::pod::packet_rules;

pub(super) fn examine(node: &Node, pod: &Attachment) -> Vec<Finding> {
    let mut findings = vec![POD_HEALTH.says(health(node, pod)), POD_CAPTURES.says(captures(pod))];
    let netns = Netns::open(&pod.netns).map_err(|error| error.to_string());
    let netns = netns.and_then(|netns| {
        let same = netns.cookie() == pod.cookie;
        same.then_some(netns)
            .ok_or_else(|| format!("{} is another network namespace now", pod.netns.display()))
    });
    match netns {
        Ok(mut netns) => findings.extend([
            POD_SIDECAR.says(sidecar(pod, &netns)),
            POD_RULES.says(rules(&netns)),
            POD_BRIDGE.says(bridges(&mut netns)),
        ]),
        Err(why) => findings.extend(
            [&POD_SIDECAR, &POD_RULES, &POD_BRIDGE].map(|check| check.says(Says::Untried(why.clone()))),
        ),
    }
    let processes = Processes::of(pod);
    findings.extend([
        POD_MOUNT.says(processes.mounts()),
        POD_RAW.says(processes.capability("NET_RAW", 13)),
        POD_ADMIN.says(processes.capability("NET_ADMIN", 12)),
    ]);
    findings
}

fn health(node: &Node, pod: &Attachment) -> Says {
    match inspect::compare(node, pod) {
        Ok(drift) if drift.is_empty() => Says::Found("every link, filter and map entry".into()),
        Ok(drift) => Says::Missing(inspect::describe(&drift)),
        Err(error) => Says::Untried(error.to_string()),
    }
}

fn captures(pod: &Attachment) -> Says {
    captures_nothing(&pod.policy).map_or_else(|| Says::Found("it does".into()), Says::Warning)
}

fn sidecar(pod: &Attachment, netns: &Netns) -> Says {
    let sockets = match netns.tcp_sockets() {
        Ok(sockets) => sockets,
        Err(error) => return Says::Untried(error.to_string()),
    };
    let proxy = &pod.policy.proxy;
    let listens = |port| {
        sockets.iter().filter(|socket| socket.listens()).any(|socket: &TcpSocket| socket.own.port() == port)
    };
    let lacks: Vec<_> =
        [proxy.outbound_port, proxy.inbound_port].into_iter().filter(|port| !listens(*port)).collect();
    match lacks.as_slice() {
        [] => Says::Found(format!("on {} and {}", proxy.outbound_port, proxy.inbound_port)),
        [port] => Says::Warning(format!("nothing listens on {port}")),
        _ => Says::Warning(format!("nothing listens on {} and {}", proxy.outbound_port, proxy.inbound_port)),
    }
}

fn rules(netns: &Netns) -> Says {
    match packet_rules::look(netns) {
        Err(error) => Says::Untried(error.to_string()),
        Ok(found) if found.istio => Says::Warning("Istio's chains (ISTIO_...) are there".into()),
        Ok(found) if !found.rewriting.is_empty() => {
            let kinds = found.rewriting.into_iter().collect::<Vec<_>>().join(", ");
            Says::Warning(format!("rules rewrite addresses: {kinds}"))
        }
        Ok(_) => Says::Found("none that rewrites addresses".into()),
    }
}

fn bridges(netns: &mut Netns) -> Says {
    match netns.bridges() {
        Err(error) => Says::Untried(error.to_string()),
        Ok(bridges) if bridges.is_empty() => Says::Found("none".into()),
        Ok(bridges) => {
            Says::Warning(format!("a bridge {}: docker-in-docker, or a guest", bridges.join(", ")))
        }
    }
}

/// What /proc says of the pod's processes.
struct Processes {
    pids: Result<Vec<i32>, String>,
}

/// File systems whose server the kernel itself talks to.
const NETWORK_FILE_SYSTEMS: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs"];

impl Processes {
    fn of(pod: &Attachment) -> Processes {
        let pids = cgroup::pids(&pod.cgroup).map_err(|error| format!("{}: {error}", pod.cgroup.display()));
        Processes { pids }
    }

    /// Reads a file of each process; a process may end meanwhile.
    fn read(&self, file: &str) -> Result<Vec<(i32, String)>, Says> {
        let pids = self.pids.as_ref().map_err(|why| Says::Untried(why.clone()))?;
        let texts = pids
            .iter()
            .filter_map(|pid| Some((*pid, fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?)));
        let texts: Vec<_> = texts.collect();
        if texts.is_empty() {
            return Err(Says::Untried("the pod has no process that can be seen from here".into()));
        }
        Ok(texts)
    }

    fn mounts(&self) -> Says {
        let texts = match self.read("mounts") {
            Ok(texts) => texts,
            Err(says) => return says,
        };
        let found: BTreeSet<_> = texts.iter().flat_map(|(_, text)| network_mounts(text)).collect();
        match found.is_empty() {
            true => Says::Found("none".into()),
            false => Says::Warning(found.into_iter().collect::<Vec<_>>().join(", ")),
        }
    }

    fn capability(&self, name: &str, number: u32) -> Says {
        let texts = match self.read("status") {
            Ok(texts) => texts,
            Err(says) => return says,
        };
        let has = |text: &String| capabilities::set(text, "CapEff").is_some_and(|set| set & 1 << number != 0);
        let holders = texts.iter().filter(|(_, text)| has(text));
        let holders: Vec<_> = holders
            .map(|(pid, text)| {
                let name = text.lines().next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or("?");
                format!("{name} ({pid})")
            })
            .collect();
        match holders.as_slice() {
            [] => Says::Found("no process has it".into()),
            [first] => Says::Warning(format!("{first} has {name}")),
            [first, rest @ ..] => Says::Warning(format!("{first} and {} more have {name}", rest.len())),
        }
    }
}

/// The mounts of `/proc/PID/mounts` whose server the kernel talks to over the network.
fn network_mounts(mounts: &str) -> Vec<String> {
    let read = |line: &str| {
        let mut words = line.split(' ');
        let (source, place, kind) = (words.next()?, words.next()?, words.next()?);
        // 9p is also how a virtual machine's folders are mounted, without a network.
        let network = NETWORK_FILE_SYSTEMS.contains(&kind) && (kind != "9p" || line.contains("trans=tcp"));
        network.then(|| format!("{source} on {place} ({kind})"))
    };
    mounts.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::network_mounts;

    #[test]
    fn mounts_over_the_network_are_told_from_others() {
        // RC0506: no network file system can be mounted in a test.
        let text = "overlay / overlay rw 0 0\n10.0.0.9:/data /data nfs4 rw,vers=4.2 0 0\n\
            share /host 9p rw,trans=virtio 0 0\nserver /there 9p rw,trans=tcp 0 0\n//srv/x /x cifs rw 0 0\n";
        let expected = ["10.0.0.9:/data on /data (nfs4)", "server on /there (9p)", "//srv/x on /x (cifs)"];
        assert_eq!(network_mounts(text), expected);
    }
}
