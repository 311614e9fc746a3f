//! From a pod's annotations to its [`Policy`].
//!
//! Every annotation that Istio's own plugin reads is here, with its grammar, its default and one strict error
//! that names the annotation, the value and what is wrong with it. An enrolled pod with an annotation that
//! cannot be read does not start: starting it with a guess would send its traffic past, or into, the sidecar.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::policy::Policy;
use crate::policy::grammar::{self, Malformed, shorten};
use crate::policy::parameters::{self, PARAMETERS};

/// A pod's annotations.
pub type Annotations = BTreeMap<String, String>;

/// REDIRECT, TPROXY, or NONE for a pod that is not captured.
pub const INTERCEPTION_MODE: &str = parameters::INTERCEPTION_MODE.annotation;
/// Interfaces of guests whose traffic is captured as if the pod sent it; not supported.
pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// The older name of [`REROUTE_VIRTUAL_INTERFACES`], read only where that is absent.
pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
/// The sidecar's status port, which kubelet's probes go to: not captured inbound. The injector puts it into
/// the exclude list, too, where it writes one.
pub const STATUS_PORT: &str = "status.sidecar.istio.io/port";

/// Why a pod's annotations cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The value cannot be read.
    #[error("annotation {annotation}={value:?}: {problem}")]
    Invalid {
        /// The annotation.
        annotation: &'static str,
        /// Its value, cut if it is long.
        value: String,
        /// What is wrong with it.
        problem: Malformed,
    },
    /// The value is understood and cannot be honoured.
    #[error("annotation {annotation}={value:?} is not supported: {why}")]
    Unsupported {
        /// The annotation.
        annotation: &'static str,
        /// Its value, cut if it is long.
        value: String,
        /// Why, and what to do.
        why: &'static str,
    },
}

/// What the annotations ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// `interceptionMode: NONE`: the sidecar is there, and nothing is captured.
    Off,
    /// Capture by this policy.
    On(Box<Policy>),
}

/// Reads all annotations over the policy that a pod without any gets on this node. Those of an uncaptured pod
/// (`NONE`) are not looked at further: they decide nothing.
///
/// # Errors
/// An annotation cannot be read, or not be honoured.
pub fn capture(annotations: &Annotations, defaults: &Policy) -> Result<Capture, Error> {
    if !intercepted(annotations)? {
        return Ok(Capture::Off);
    }
    refuse_guests(annotations)?;
    policy(annotations, defaults).map(|policy| Capture::On(Box::new(policy)))
}

fn policy(annotations: &Annotations, defaults: &Policy) -> Result<Policy, Error> {
    let mut policy = defaults.clone();
    for parameter in PARAMETERS {
        let Some(value) = annotations.get(parameter.annotation) else { continue };
        let invalid =
            |problem| Error::Invalid { annotation: parameter.annotation, value: shorten(value), problem };
        parameter.set(&mut policy, value).map_err(invalid)?;
        policy.node_defaults.remove(parameter.name);
    }
    let status = Reader(annotations).value(STATUS_PORT, grammar::ports)?.unwrap_or_default();
    policy.exclude_inbound_ports.extend(status.into_iter().filter(|port| *port != 0));
    Ok(policy)
}

/// Whether the interception mode captures at all.
fn intercepted(annotations: &Annotations) -> Result<bool, Error> {
    let Some(mode) = annotations.get(INTERCEPTION_MODE) else { return Ok(true) };
    match mode.as_str() {
        "REDIRECT" | "TPROXY" => Ok(true),
        "NONE" => Ok(false),
        other => {
            let problem = Malformed::Choice { value: shorten(other), allowed: "REDIRECT, TPROXY, NONE" };
            Err(Error::Invalid { annotation: INTERCEPTION_MODE, value: shorten(other), problem })
        }
    }
}

/// A pod that forwards the traffic of guests cannot be served: a guest's packets have no socket in the pod.
fn refuse_guests(annotations: &Annotations) -> Result<(), Error> {
    let names = [REROUTE_VIRTUAL_INTERFACES, KUBEVIRT_INTERFACES];
    let Some((annotation, value)) = names.into_iter().find_map(|name| Some((name, annotations.get(name)?)))
    else {
        return Ok(());
    };
    if Reader(annotations).value(annotation, grammar::interfaces)?.is_none_or(|list| list.is_empty()) {
        return Ok(());
    }
    Err(Error::Unsupported {
        annotation,
        value: shorten(value),
        why: "traffic that the pod forwards for a virtual machine or a nested container never belonged to a socket \
              of the pod, and only sockets are redirected here; run such a pod on a node that redirects with iptables",
    })
}

struct Reader<'a>(&'a Annotations);

impl Reader<'_> {
    fn value<T>(
        &self,
        annotation: &'static str,
        parse: impl Fn(&str) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Error> {
        let invalid = |value, problem| Error::Invalid { annotation, value: shorten(value), problem };
        self.0
            .get(annotation)
            .map(|value| parse(value).map_err(|problem| invalid(value, problem)))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use redirect_common::PROXY_PORTS;

    use super::*;
    use crate::policy::parameters::Parameter;
    use crate::policy::{InterceptionMode, OwnerGroups, Ports, Proxy, Ranges};

    const INCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
    const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
    const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Policy, Error> {
        match capture(&annotations(pairs), &Policy::default())? {
            Capture::On(policy) => Ok(*policy),
            Capture::Off => panic!("not captured"),
        }
    }

    #[test]
    fn no_annotation_means_the_default_policy() {
        assert_eq!(read(&[]).unwrap(), Policy::default());
        assert_eq!(read(&[("unrelated.example/port", "http")]).unwrap(), Policy::default());
    }

    #[test]
    fn every_annotation_has_its_field() {
        let policy = read(&[
            (INTERCEPTION_MODE, "TPROXY"),
            (INCLUDE_OUTBOUND_IP_RANGES, "10.0.0.0/8,fd00::/8"),
            (EXCLUDE_OUTBOUND_IP_RANGES, "10.96.0.0/12"),
            (INCLUDE_OUTBOUND_PORTS, "3306"),
            (EXCLUDE_OUTBOUND_PORTS, "25, 465"),
            (INCLUDE_INBOUND_PORTS, "8080,9080"),
            (EXCLUDE_INBOUND_PORTS, "3306"),
            (EXCLUDE_INTERFACES, "net1"),
            (STATUS_PORT, "15020"),
            (REROUTE_VIRTUAL_INTERFACES, ""),
        ])
        .unwrap();
        let nets = |text: &str| text.split(',').map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            policy,
            Policy {
                interception_mode: InterceptionMode::Tproxy,
                include_outbound_ip_ranges: Ranges::List(nets("10.0.0.0/8,fd00::/8")),
                exclude_outbound_ip_ranges: nets("10.96.0.0/12"),
                include_outbound_ports: BTreeSet::from([3306]),
                exclude_outbound_ports: BTreeSet::from([25, 465]),
                include_inbound_ports: Ports::List(BTreeSet::from([8080, 9080])),
                exclude_inbound_ports: BTreeSet::from([3306, 15020, 15021, 15090]),
                exclude_interfaces: vec!["net1".to_owned()],
                ..Policy::default()
            }
        );
    }

    #[test]
    fn an_empty_value_is_not_an_absent_one() {
        let policy = read(&[
            (INCLUDE_OUTBOUND_IP_RANGES, ""),
            (EXCLUDE_OUTBOUND_PORTS, ""),
            (INCLUDE_INBOUND_PORTS, ""),
            (EXCLUDE_INBOUND_PORTS, ""),
        ])
        .unwrap();
        assert_eq!(policy.include_outbound_ip_ranges, Ranges::List(vec![]));
        assert_eq!(policy.exclude_outbound_ports, BTreeSet::new());
        assert_eq!(policy.include_inbound_ports, Ports::List(BTreeSet::new()));
        assert_eq!(policy.exclude_inbound_ports, BTreeSet::from(PROXY_PORTS));
    }

    #[test]
    fn the_node_says_what_a_pod_does_not() {
        let mut node = Policy {
            proxy: Proxy { uid: 5, gid: 6, ..Proxy::default() },
            dns_capture: true,
            owner_groups: OwnerGroups::Only(BTreeSet::from([7])),
            ..Policy::default()
        };
        for (name, value) in [("excludeOutboundIPRanges", "10.96.0.0/12"), ("excludeOutboundPorts", "25")] {
            Parameter::named(name).unwrap().set_default(&mut node, value).unwrap();
        }
        let Ok(Capture::On(silent)) = capture(&Annotations::new(), &node) else { panic!("not captured") };
        assert_eq!(*silent, node);
        // An annotation takes the place of the node's value, also where it is empty.
        let spoken = annotations(&[(EXCLUDE_OUTBOUND_IP_RANGES, ""), (EXCLUDE_OUTBOUND_PORTS, "80")]);
        let Ok(Capture::On(policy)) = capture(&spoken, &node) else { panic!("not captured") };
        assert_eq!(policy.exclude_outbound_ip_ranges, []);
        assert_eq!(policy.exclude_outbound_ports, BTreeSet::from([80]));
        assert_eq!((policy.proxy, policy.dns_capture), (node.proxy, true));
        assert_eq!((policy.node_defaults.len(), node.node_defaults.len()), (0, 2));
    }

    #[test]
    fn the_status_port_is_not_captured_inbound() {
        let policy = read(&[(STATUS_PORT, "18000")]).unwrap();
        assert_eq!(policy.exclude_inbound_ports, BTreeSet::from([15020, 15021, 15090, 18000]));
        assert_eq!(read(&[(STATUS_PORT, "0")]), Ok(Policy::default()), "0 means that there is none");
    }

    #[test]
    fn none_means_not_captured_whatever_else_is_written() {
        let none = annotations(&[(INTERCEPTION_MODE, "NONE"), (INCLUDE_INBOUND_PORTS, "nonsense")]);
        assert_eq!(capture(&none, &Policy::default()), Ok(Capture::Off));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_the_reason() {
        for (annotation, value) in
            [(REROUTE_VIRTUAL_INTERFACES, "tap0"), (KUBEVIRT_INTERFACES, "k6t-eth0, tap1")]
        {
            let error = read(&[(annotation, value)]).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(annotation) && text.contains(value) && text.contains("not supported"),
                "{text}"
            );
        }
        // The older name counts only where the newer one is absent.
        assert_eq!(
            read(&[(REROUTE_VIRTUAL_INTERFACES, ""), (KUBEVIRT_INTERFACES, "tap0")]),
            Ok(Policy::default())
        );
    }

    #[test]
    fn every_annotation_is_strict_and_named_in_its_error() {
        for (annotation, value) in [
            (INTERCEPTION_MODE, ""),
            (INTERCEPTION_MODE, "redirect"),
            (INCLUDE_OUTBOUND_IP_RANGES, "10.0.0.0/8, 11.0.0.0/8"),
            (INCLUDE_OUTBOUND_IP_RANGES, "10.0.0.1"),
            (EXCLUDE_OUTBOUND_IP_RANGES, "*"),
            (INCLUDE_OUTBOUND_PORTS, "80-90"),
            (EXCLUDE_OUTBOUND_PORTS, "80,"),
            (INCLUDE_INBOUND_PORTS, "http"),
            (EXCLUDE_INBOUND_PORTS, "*"),
            (EXCLUDE_INTERFACES, "eth0 -j ACCEPT"),
            (REROUTE_VIRTUAL_INTERFACES, "0tap"),
            (KUBEVIRT_INTERFACES, ","),
            (STATUS_PORT, "70000"),
        ] {
            let error = read(&[(annotation, value)]).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{annotation}={value}: {error}");
            let text = error.to_string();
            assert!(text.contains(&format!("{annotation}={value:?}")), "{text}");
        }
    }

    #[test]
    fn ten_thousand_ranges_are_no_trouble() {
        let list: Vec<String> = (0..10_000_u32).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let policy = read(&[(EXCLUDE_OUTBOUND_IP_RANGES, &list.join(","))]).unwrap();
        assert_eq!(policy.exclude_outbound_ip_ranges.len(), 10_000);
    }
}
