//! The one table of what decides about a pod's capture and can be said in a pod's annotations, in the node's
//! configuration and at the prompt. To add a parameter: a field in [`Policy`], a row here, its entries in the
//! maps.

use std::collections::BTreeSet;

use redirect_common::{PROXY_PORTS, STATUS_PORT};

use crate::policy::grammar::{self, Malformed};
use crate::policy::{Guard, InterceptionMode, OwnerGroups, Policy, Ports, Proxy, Ranges};

/// One parameter.
pub struct Parameter {
    /// Its name: the annotation without its prefix, a key of the plugin's `defaults`, a field of the record.
    pub name: &'static str,
    /// The pod's annotation.
    pub annotation: &'static str,
    /// The flag of `redirect attach`, without the dashes.
    pub flag: &'static str,
    /// What an absent annotation means, in the annotation's own grammar.
    pub default: &'static str,
    /// What the value is, in a few words.
    pub help: &'static str,
    /// Reads a value into the policy.
    read: fn(&mut Policy, &str) -> Result<(), Malformed>,
}

impl Parameter {
    /// Sets the parameter in a policy.
    ///
    /// # Errors
    /// The value cannot be read.
    pub fn set(&self, policy: &mut Policy, value: &str) -> Result<(), Malformed> {
        (self.read)(policy, value)
    }

    /// Sets the parameter as the node's default.
    ///
    /// # Errors
    /// The value cannot be read.
    pub fn set_default(&self, policy: &mut Policy, value: &str) -> Result<(), Malformed> {
        self.set(policy, value)?;
        policy.node_defaults.insert(self.name.to_owned());
        Ok(())
    }

    /// Where the value in a policy comes from, for people: the annotation, or the node's default for it.
    #[must_use]
    pub fn origin(&self, policy: &Policy) -> String {
        let node = policy.node_defaults.contains(self.name);
        if node { format!("the node's default of {}", self.annotation) } else { self.annotation.to_owned() }
    }

    /// The parameter of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Parameter> {
        PARAMETERS.iter().copied().find(|parameter| parameter.name == name)
    }
}

/// The annotation.
impl std::fmt::Display for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.annotation)
    }
}

/// All parameters, in the order in which they are explained.
pub static PARAMETERS: [&Parameter; 10] = [
    &INTERCEPTION_MODE,
    &INCLUDE_OUTBOUND_IP_RANGES,
    &EXCLUDE_OUTBOUND_IP_RANGES,
    &INCLUDE_OUTBOUND_PORTS,
    &EXCLUDE_OUTBOUND_PORTS,
    &INCLUDE_INBOUND_PORTS,
    &EXCLUDE_INBOUND_PORTS,
    &EXCLUDE_INTERFACES,
    &DNS_SERVERS,
    &GUARD,
];

/// What the application sees as its client. (NONE is no value of a policy: such a pod has none.)
pub static INTERCEPTION_MODE: Parameter = Parameter {
    name: "interceptionMode",
    annotation: "sidecar.istio.io/interceptionMode",
    flag: "interception-mode",
    default: "REDIRECT",
    help: "REDIRECT shows the application the sidecar as its client, TPROXY the client itself",
    read: |policy, value| store(&mut policy.interception_mode, grammar::interception_mode(value)),
};

macro_rules! parameter {
    ($(#[doc = $doc:literal])+ $constant:ident, $name:literal, $flag:literal, $default:literal, $help:literal, $read:expr) => {
        $(#[doc = $doc])+
        pub static $constant: Parameter = Parameter {
            name: $name,
            annotation: concat!("traffic.sidecar.istio.io/", $name),
            flag: $flag,
            default: $default,
            help: $help,
            read: $read,
        };
    };
}

parameter!(
    /// Ranges whose outbound traffic is captured.
    INCLUDE_OUTBOUND_IP_RANGES,
    "includeOutboundIPRanges", "include-outbound-ip-ranges", "*",
    "`*`, or CIDRs separated by commas; empty for none",
    |policy, value| store(&mut policy.include_outbound_ip_ranges, grammar::ranges_or_all(value))
);
parameter!(
    /// Ranges whose outbound traffic is not captured.
    EXCLUDE_OUTBOUND_IP_RANGES,
    "excludeOutboundIPRanges", "exclude-outbound-ip-ranges", "",
    "CIDRs separated by commas",
    |policy, value| store(&mut policy.exclude_outbound_ip_ranges, grammar::ranges(value))
);
parameter!(
    /// Ports whose outbound traffic is captured in all ranges.
    INCLUDE_OUTBOUND_PORTS,
    "includeOutboundPorts", "include-outbound-ports", "",
    "Ports separated by commas",
    |policy, value| store(&mut policy.include_outbound_ports, grammar::ports(value))
);
parameter!(
    /// Ports whose outbound traffic is not captured. Istio's own plugin takes an absent annotation for 15020.
    EXCLUDE_OUTBOUND_PORTS,
    "excludeOutboundPorts", "exclude-outbound-ports", "15020",
    "Ports separated by commas",
    |policy, value| store(&mut policy.exclude_outbound_ports, grammar::ports(value))
);
parameter!(
    /// Ports whose inbound traffic is captured.
    INCLUDE_INBOUND_PORTS,
    "includeInboundPorts", "include-inbound-ports", "*",
    "`*`, or ports separated by commas; empty for none",
    |policy, value| store(&mut policy.include_inbound_ports, grammar::ports_or_all(value))
);
parameter!(
    /// Ports whose inbound traffic is not captured where all others are; [`PROXY_PORTS`] are always among
    /// them.
    EXCLUDE_INBOUND_PORTS,
    "excludeInboundPorts", "exclude-inbound-ports", "",
    "Ports separated by commas; 15020, 15021 and 15090 are always added",
    |policy, value| {
        let ports = grammar::ports(value).map(|ports| ports.into_iter().chain(PROXY_PORTS).collect());
        store(&mut policy.exclude_inbound_ports, ports)
    }
);
parameter!(
    /// Interfaces whose traffic is not captured.
    EXCLUDE_INTERFACES,
    "excludeInterfaces", "exclude-interfaces", "",
    "Interface names separated by commas",
    |policy, value| store(&mut policy.exclude_interfaces, grammar::interfaces(value))
);
/// Servers whose DNS is captured, where DNS is. Istio's plugin has no such list; its init container has.
pub static DNS_SERVERS: Parameter = Parameter {
    name: "dnsServers",
    annotation: "redirect-cni.dev/dnsServers",
    flag: "dns-servers",
    default: "*",
    help: "`*`, or addresses of DNS servers separated by commas; empty for none",
    read: |policy, value| store(&mut policy.dns_servers, grammar::addresses_or_all(value)),
};

/// What becomes of a packet that goes around the sidecar. Ours, not Istio's.
pub static GUARD: Parameter = Parameter {
    name: "guard",
    annotation: "redirect-cni.dev/guard",
    flag: "guard",
    default: "enforce",
    help: "enforce drops what goes around the sidecar, audit counts it, off looks at none",
    read: |policy, value| store(&mut policy.guard, grammar::guard(value)),
};

fn store<T>(field: &mut T, value: Result<T, Malformed>) -> Result<(), Malformed> {
    value.map(|value| *field = value)
}

impl Default for Policy {
    /// What a pod without any annotation gets, as long as its node says nothing else. A test holds it against
    /// the table's defaults.
    fn default() -> Policy {
        Policy {
            interception_mode: InterceptionMode::Redirect,
            include_outbound_ip_ranges: Ranges::All,
            exclude_outbound_ip_ranges: Vec::new(),
            include_outbound_ports: BTreeSet::new(),
            exclude_outbound_ports: BTreeSet::from([STATUS_PORT]),
            include_inbound_ports: Ports::All,
            exclude_inbound_ports: BTreeSet::from(PROXY_PORTS),
            exclude_interfaces: Vec::new(),
            owner_groups: OwnerGroups::AllBut(BTreeSet::new()),
            dns_capture: false,
            dns_servers: Ranges::All,
            guard: Guard::Enforce,
            proxy: Proxy::default(),
            node_defaults: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_defaults_are_the_default_policy() {
        let mut policy = Policy {
            interception_mode: InterceptionMode::Tproxy,
            include_outbound_ip_ranges: Ranges::List(Vec::new()),
            exclude_outbound_ports: BTreeSet::from([1]),
            include_inbound_ports: Ports::List(BTreeSet::new()),
            exclude_inbound_ports: BTreeSet::from([1]),
            exclude_interfaces: vec!["x".to_owned()],
            dns_servers: Ranges::List(Vec::new()),
            ..Policy::default()
        };
        for parameter in PARAMETERS {
            parameter.set(&mut policy, parameter.default).unwrap();
        }
        assert_eq!(policy, Policy::default());
    }

    #[test]
    fn names_annotations_flags_and_fields_are_one_word() {
        let record = serde_json::to_value(Policy::default()).unwrap();
        for parameter in PARAMETERS {
            let Parameter { name, annotation, flag, .. } = parameter;
            let prefix = match *name {
                "guard" | "dnsServers" => "redirect-cni.dev",
                "interceptionMode" => "sidecar.istio.io",
                _ => "traffic.sidecar.istio.io",
            };
            assert_eq!(*annotation, format!("{prefix}/{name}"));
            let squeezed = flag.replace('-', "");
            assert_eq!(squeezed, name.to_lowercase());
            let field = record.as_object().unwrap().keys().find(|field| field.to_lowercase() == squeezed);
            assert!(field.is_some(), "{name} has no field in the record");
            assert_eq!(Parameter::named(name).unwrap().flag, *flag);
        }
        assert!(Parameter::named("excludeOutboundIpRanges").is_none());
    }
}
