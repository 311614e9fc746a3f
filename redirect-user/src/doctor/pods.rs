//! What is attached on this node, all pods together.

use redirect_common::addr::Family;

use super::checks::{CAPTURES, HEALTH, ISTIO_RULES};
use super::finding::{Finding, Says};
use crate::attach::record::{self, Attachment};
use crate::inspect;
use crate::node::Node;
use crate::pod::netns::Netns;
use crate::pod::packet_rules::{self, Found};
use crate::policy::parameters::{EXCLUDE_OUTBOUND_IP_RANGES, INCLUDE_OUTBOUND_IP_RANGES};
use crate::policy::{Policy, Ports, Ranges};

pub(super) fn examine(node: &Node) -> Vec<Finding> {
    let pods = match record::all(node) {
        Ok(pods) => pods,
        Err(error) => {
            let why = || Says::Untried(error.to_string());
            return vec![HEALTH.says(why()), CAPTURES.says(why()), ISTIO_RULES.says(why())];
        }
    };
    vec![
        HEALTH.says(health(node, &pods)),
        CAPTURES.says(captures(&pods)),
        ISTIO_RULES.says(istio_rules(&pods)),
    ]
}

/// What to call an attached pod.
fn name(pod: &Attachment) -> String {
    match &pod.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => format!("container {}", pod.id.container_id),
    }
}

/// Sums up what was found for some pods.
fn sum(pods: usize, bad: &[String], good: &str, says: fn(String) -> Says) -> Says {
    match bad {
        [] => Says::Found(match pods {
            0 => "no pod is attached".into(),
            _ => format!("{pods} attached, {good}"),
        }),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
            says(format!("{first}{more}"))
        }
    }
}

fn health(node: &Node, pods: &[Attachment]) -> Says {
    let mut bad = Vec::new();
    for pod in pods {
        match inspect::compare(node, pod) {
            Ok(drift) if drift.is_empty() => {}
            Ok(drift) => bad.push(format!("{}: {}", name(pod), inspect::describe(&drift))),
            Err(error) => return Says::Untried(format!("{}: {error}", name(pod))),
        }
    }
    sum(pods.len(), &bad, "all as they were attached", Says::Missing)
}

fn captures(pods: &[Attachment]) -> Says {
    let bad =
        pods.iter().filter_map(|pod| Some(format!("{}: {}", name(pod), captures_nothing(&pod.policy)?)));
    let bad: Vec<_> = bad.collect();
    sum(pods.len(), &bad, "each captures something", Says::Warning)
}

/// Why a policy sends nothing of what the pod sends, or of what reaches it, to the sidecar.
#[must_use]
pub fn captures_nothing(policy: &Policy) -> Option<String> {
    let whole = |family: Family| {
        policy
            .exclude_outbound_ip_ranges
            .iter()
            .any(|range| range.prefix_len() == 0 && Family::of(&range.addr()) == family)
    };
    let excluded = EXCLUDE_OUTBOUND_IP_RANGES.origin(policy);
    let outbound = match &policy.include_outbound_ip_ranges {
        _ if whole(Family::V4) && whole(Family::V6) => Some(format!("{excluded} has every address")),
        _ if whole(Family::V4) => Some(format!("{excluded} has every IPv4 address (0.0.0.0/0)")),
        _ if whole(Family::V6) => Some(format!("{excluded} has every IPv6 address (::/0)")),
        Ranges::List(ranges) if ranges.is_empty() && policy.include_outbound_ports.is_empty() => {
            Some(format!("{} is empty", INCLUDE_OUTBOUND_IP_RANGES.origin(policy)))
        }
        _ => None,
    };
    let nothing_in = matches!(&policy.include_inbound_ports, Ports::List(ports) if ports.is_empty());
    match (outbound, nothing_in) {
        (Some(why), true) => Some(format!("nothing is captured, neither way: {why}")),
        (Some(why), false) => Some(format!("nothing that it sends is captured: {why}")),
        // A pod that takes no inbound traffic through its sidecar is usual.
        (None, _) => None,
    }
}

fn istio_rules(pods: &[Attachment]) -> Says {
    let (mut bad, mut looked) = (Vec::new(), 0);
    for pod in pods {
        let netns = Netns::open(&pod.netns).ok().filter(|netns| netns.cookie() == pod.cookie);
        let Some(netns) = netns else { continue };
        match packet_rules::look(&netns) {
            Ok(Found { istio: true, .. }) => bad.push(format!("{} has chains of Istio's", name(pod))),
            Ok(_) => looked += 1,
            Err(error) => return Says::Untried(format!("{}: {error}", name(pod))),
        }
    }
    sum(looked, &bad, "none has any", Says::Warning)
}
