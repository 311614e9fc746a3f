//! The two ways in which a policy gets into a pod: Istio's rules, or our programs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use harness::{Capabilities, Family, Node, Pod, istio};
use redirect_user::attach::record;
use redirect_user::attach::replan::replan;
use redirect_user::attach::{self, Request};
use redirect_user::ids::AttachmentId;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::{OwnerGroups, Policy, Ports, Ranges};

/// Who captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enforcer {
    /// iptables-legacy with the rules that Istio loads.
    Iptables,
    /// redirect-cni.
    Ours,
}

impl Enforcer {
    /// Once for each pod: where iptables' marks lead to.
    pub(crate) fn prepare(self, pod: &Pod) {
        if self == Enforcer::Iptables {
            istio::route_marked(pod.netns());
        }
    }

    /// Which capabilities a sidecar of uid 1337 must have in TPROXY mode.
    pub(crate) fn sidecar_needs(self) -> Capabilities {
        match self {
            Enforcer::Iptables => Capabilities::Network,
            Enforcer::Ours => Capabilities::None,
        }
    }

    /// Replaces the policy of a pod.
    pub(crate) fn enforce(self, node: &Node, pod: &Pod, policy: &Policy) {
        match self {
            Enforcer::Iptables => {
                // Istio does this too, so that Envoy can bind its connections to the application to it.
                pod.netns().ip("addr replace ::6/128 dev lo");
                for family in Family::ALL {
                    load_rules(node, pod, policy, family);
                }
            }
            Enforcer::Ours => {
                if node.attached().iter().any(|id| id == pod.name()) {
                    assert_guard_idle(node, pod);
                    node.detach(pod);
                }
                match flags(policy) {
                    Some(flags) => node.attach(pod, &flags.iter().map(String::as_str).collect::<Vec<_>>()),
                    None => attach_by_library(node, pod, policy),
                }
            }
        }
    }
}

impl Enforcer {
    /// What the agent does within a second when the pod gets an address or an interface.
    pub(crate) fn catch_up(self, node: &Node, pod: &Pod) {
        if self == Enforcer::Ours {
            let node = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
            let lock = NodeLock::acquire(&node).expect("the node's lock");
            let records = record::of_container(&node, pod.name()).expect("the pod's record is readable");
            for attachment in records {
                let coverage = replan(&node, &lock, &attachment);
                coverage.unwrap_or_else(|error| panic!("re-plan {}: {error}", pod.name()));
            }
        }
    }
}

/// With everything in order no packet goes around us, so the guard has refused none.
pub(crate) fn assert_guard_idle(node: &Node, pod: &Pod) {
    let stats = node.stats(pod);
    let refused: Vec<_> =
        stats.iter().filter(|(name, count)| name.starts_with("guard_") && **count > 0).collect();
    assert!(refused.is_empty(), "the guard refused what should pass: {refused:?}");
}

/// Replaces all tables of one family by those that Istio loads.
pub(crate) fn load_rules(node: &Node, pod: &Pod, policy: &Policy, family: Family) {
    let program = match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    };
    // All tables, so that nothing of an earlier policy stays.
    let input = istio::nat(policy, family) + &istio::raw(policy, family) + &istio::mangle(policy, family);
    let mut command = Command::new(program);
    // A lock of our own: the machine's is none of our business.
    command.env("XTABLES_LOCKFILE", node.dir().join("xtables.lock"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    pod.netns().enter(&mut command, None);
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("start {program} (Debian package iptables): {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("write rules");
    let output = child.wait_with_output().expect("wait for iptables");
    assert!(output.status.success(), "{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

/// The policy as flags of `redirect attach`; `None` if it has something for which there is no flag.
fn flags(policy: &Policy) -> Option<Vec<String>> {
    if policy.owner_groups != OwnerGroups::AllBut([].into()) {
        return None;
    }
    let mut flags = vec![
        format!("--interception-mode={}", policy.interception_mode.name()),
        format!("--include-outbound-ip-ranges={}", ranges(&policy.include_outbound_ip_ranges)),
        format!("--exclude-outbound-ip-ranges={}", joined(&policy.exclude_outbound_ip_ranges)),
        format!("--include-outbound-ports={}", joined(&policy.include_outbound_ports)),
        format!("--exclude-outbound-ports={}", joined(&policy.exclude_outbound_ports)),
        format!("--include-inbound-ports={}", ports(&policy.include_inbound_ports)),
        format!("--exclude-inbound-ports={}", joined(&policy.exclude_inbound_ports)),
        format!("--exclude-interfaces={}", joined(&policy.exclude_interfaces)),
        format!("--proxy-uid={}", policy.proxy.uid),
        format!("--proxy-gid={}", policy.proxy.gid),
    ];
    if let Ranges::List(servers) = &policy.dns_servers {
        flags.push(format!("--dns-servers={}", joined(servers.iter().map(ipnet::IpNet::addr))));
    }
    if policy.dns_capture {
        flags.push("--dns-capture".to_owned());
    }
    Some(flags)
}

fn ranges(ranges: &Ranges) -> String {
    match ranges {
        Ranges::All => "*".to_owned(),
        Ranges::List(list) => joined(list),
    }
}

fn ports(ports: &Ports) -> String {
    match ports {
        Ports::All => "*".to_owned(),
        Ports::List(list) => joined(list),
    }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn attach_by_library(node: &Node, pod: &Pod, policy: &Policy) {
    let node = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
    let lock = NodeLock::acquire(&node).expect("the node's lock");
    let request = Request {
        id: AttachmentId { container_id: pod.name().to_owned(), ifname: "eth0".to_owned() },
        cgroup: pod.cgroup().to_owned(),
        netns: pod.netns().path().to_owned(),
        policy: policy.clone(),
        pod: None,
        network: None,
        addresses: Vec::new(),
        made_cgroups: Vec::new(),
    };
    attach::attach(&node, &lock, &request).unwrap_or_else(|error| panic!("attach {}: {error}", pod.name()));
}
