//! A policy as the rules that Istio loads for it: the input of `iptables-restore` and `ip6tables-restore`.
//!
//! Written from the order of evaluation in the documentation of Istio's capture, and knowing nothing of
//! `decide()`. The oracle compares decisions with them, the benchmark compares costs.

use std::fmt::Write as _;

use ipnet::IpNet;
use redirect_common::addr::Family;
use redirect_user::policy::{InterceptionMode, OwnerGroups, Policy, Ports, Ranges};

mod tproxy;

pub use tproxy::{mangle, route_marked};

/// The table `nat` of one family. Its chains are emptied first, those of the kernel too, unless the command
/// is told not to (`--noflush`).
#[must_use]
pub fn nat(policy: &Policy, family: Family) -> String {
    let mut rules = Rules { text: String::new(), policy, family };
    rules.nat();
    rules.text
}

/// The table `raw`, which has rules where DNS is captured.
#[must_use]
pub fn raw(policy: &Policy, family: Family) -> String {
    let mut rules = Rules { text: String::new(), policy, family };
    rules.raw();
    rules.text
}

struct Rules<'a> {
    text: String,
    policy: &'a Policy,
    family: Family,
}

impl Rules<'_> {
    fn add(&mut self, rule: impl AsRef<str>) {
        writeln!(self.text, "-A {}", rule.as_ref()).expect("writing to a string");
    }

    fn localhost(&self) -> &'static str {
        match self.family {
            Family::V4 => "127.0.0.1/32",
            Family::V6 => "::1/128",
        }
    }

    fn passthrough(&self) -> &'static str {
        match self.family {
            Family::V4 => "127.0.0.6/32",
            Family::V6 => "::6/128",
        }
    }

    fn of_family<'r>(&self, ranges: &'r [IpNet]) -> Vec<&'r IpNet> {
        ranges.iter().filter(|range| Family::of(&range.addr()) == self.family).collect()
    }

    fn nat(&mut self) {
        self.text.push_str("*nat\n");
        for chain in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
            writeln!(self.text, ":{chain} ACCEPT [0:0]").expect("writing to a string");
        }
        for chain in ["INBOUND", "REDIRECT", "IN_REDIRECT", "OUTPUT", "OUTPUT_DNS"] {
            writeln!(self.text, ":ISTIO_{chain} - [0:0]").expect("writing to a string");
        }
        let proxy = &self.policy.proxy;
        let (outbound, inbound) = (proxy.outbound_port, proxy.inbound_port);
        self.add(format!("ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {outbound}"));
        self.add(format!("ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {inbound}"));
        for interface in &self.policy.exclude_interfaces {
            self.add(format!("PREROUTING -i {interface} -j RETURN"));
            self.add(format!("OUTPUT -o {interface} -j RETURN"));
        }
        self.inbound();
        self.add("OUTPUT -j ISTIO_OUTPUT");
        self.outbound();
        self.text.push_str("COMMIT\n");
    }

    fn inbound(&mut self) {
        self.add("ISTIO_INBOUND -p tcp --dport 15008 -j RETURN");
        if self.policy.interception_mode == InterceptionMode::Tproxy {
            return; // The rest is in the table mangle.
        }
        match &self.policy.include_inbound_ports {
            Ports::All => {
                for port in &self.policy.exclude_inbound_ports {
                    self.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j RETURN"));
                }
                self.add("ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT");
            }
            Ports::List(ports) if ports.is_empty() => return,
            Ports::List(ports) => {
                for port in ports {
                    self.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j ISTIO_IN_REDIRECT"));
                }
            }
        }
        self.add("PREROUTING -p tcp -j ISTIO_INBOUND");
    }

    fn outbound(&mut self) {
        for port in &self.policy.exclude_outbound_ports {
            self.add(format!("ISTIO_OUTPUT -p tcp --dport {port} -j RETURN"));
            self.add(format!("ISTIO_OUTPUT -p udp --dport {port} -j RETURN"));
        }
        self.add(format!("ISTIO_OUTPUT -o lo -s {} -j RETURN", self.passthrough()));
        let dns = self.policy.dns_capture;
        let uid_ports = if dns { "-m multiport ! --dports 53,15008" } else { "! --dport 15008" };
        self.owner(&format!("--uid-owner {}", self.policy.proxy.uid), uid_ports);
        self.owner(&format!("--gid-owner {}", self.policy.proxy.gid), "! --dport 15008");
        self.owner_groups();
        if dns {
            self.add("ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS");
            let port = self.policy.proxy.dns_port;
            for server in self.dns_servers("-d") {
                for protocol in ["tcp", "udp"] {
                    self.add(format!(
                        "ISTIO_OUTPUT_DNS -p {protocol} --dport 53 {server}-j REDIRECT --to-ports {port}"
                    ));
                }
            }
        }
        self.destinations();
    }

    /// The three rules for the sidecar's uid, or gid.
    fn owner(&mut self, owner: &str, self_call_ports: &str) {
        let localhost = self.localhost();
        self.add(format!(
            "ISTIO_OUTPUT -o lo ! -d {localhost} -p tcp {self_call_ports} -m owner {owner} -j ISTIO_IN_REDIRECT"
        ));
        if !includes_loopback(self.policy) {
            let ports = if self.policy.dns_capture { "-p tcp ! --dport 53" } else { "" };
            self.add(format!("ISTIO_OUTPUT -o lo {ports} -m owner ! {owner} -j RETURN"));
        }
        self.add(format!("ISTIO_OUTPUT -m owner {owner} -j RETURN"));
    }

    fn owner_groups(&mut self) {
        match &self.policy.owner_groups {
            OwnerGroups::AllBut(groups) => {
                for group in groups {
                    self.add(format!("ISTIO_OUTPUT -m owner --gid-owner {group} -j RETURN"));
                }
            }
            OwnerGroups::Only(groups) => {
                let none_of: String =
                    groups.iter().map(|group| format!("-m owner ! --gid-owner {group} ")).collect();
                self.add(format!("ISTIO_OUTPUT {none_of}-j RETURN"));
            }
        }
    }

    fn destinations(&mut self) {
        self.add(format!("ISTIO_OUTPUT -d {} -j RETURN", self.localhost()));
        for range in self.of_family(&self.policy.exclude_outbound_ip_ranges) {
            self.add(format!("ISTIO_OUTPUT -d {range} -j RETURN"));
        }
        for port in &self.policy.include_outbound_ports {
            self.add(format!("ISTIO_OUTPUT -p tcp --dport {port} -j ISTIO_REDIRECT"));
        }
        match &self.policy.include_outbound_ip_ranges {
            Ranges::All => self.add("ISTIO_OUTPUT -j ISTIO_REDIRECT"),
            Ranges::List(ranges) => {
                for range in self.of_family(ranges) {
                    self.add(format!("ISTIO_OUTPUT -d {range} -j ISTIO_REDIRECT"));
                }
            }
        }
    }

    /// What a rule about captured DNS has to match, once for each listed server; nothing where all are
    /// captured.
    fn dns_servers(&self, side: &str) -> Vec<String> {
        match &self.policy.dns_servers {
            Ranges::All => vec![String::new()],
            Ranges::List(servers) => {
                self.of_family(servers).into_iter().map(|server| format!("{side} {server} ")).collect()
            }
        }
    }

    /// Conntrack zones that keep the application's queries and those of the DNS proxy apart.
    fn raw(&mut self) {
        self.text.push_str("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n");
        if self.policy.dns_capture {
            let (uid, gid) = (self.policy.proxy.uid, self.policy.proxy.gid);
            let port = self.policy.proxy.dns_port;
            for owner in [format!("--uid-owner {uid}"), format!("--gid-owner {gid}")] {
                self.add(format!("OUTPUT -p udp --dport 53 -m owner {owner} -j CT --zone 1"));
                self.add(format!("OUTPUT -p udp --sport {port} -m owner {owner} -j CT --zone 2"));
            }
            for server in self.dns_servers("-d") {
                self.add(format!("OUTPUT -p udp --dport 53 {server}-j CT --zone 2"));
            }
            for server in self.dns_servers("-s") {
                self.add(format!("PREROUTING -p udp --sport 53 {server}-j CT --zone 1"));
            }
        }
        self.text.push_str("COMMIT\n");
    }
}

fn includes_loopback(policy: &Policy) -> bool {
    matches!(&policy.include_outbound_ip_ranges, Ranges::List(ranges)
        if ranges.iter().any(|range| range.addr().is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_gives_istios_default_rules() {
        let expected = "\
            -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
            -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
            -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n\
            -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
            -A OUTPUT -j ISTIO_OUTPUT\n\
            -A ISTIO_OUTPUT -p tcp --dport 15020 -j RETURN\n\
            -A ISTIO_OUTPUT -p udp --dport 15020 -j RETURN\n\
            -A ISTIO_OUTPUT -o lo -s ::6/128 -j RETURN\n\
            -A ISTIO_OUTPUT -o lo ! -d ::1/128 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT\n\
            -A ISTIO_OUTPUT -o lo  -m owner ! --uid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -o lo ! -d ::1/128 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT\n\
            -A ISTIO_OUTPUT -o lo  -m owner ! --gid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -d ::1/128 -j RETURN\n\
            -A ISTIO_OUTPUT -j ISTIO_REDIRECT\n";
        let text = nat(&Policy::default(), Family::V6);
        let rules: String =
            text.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")).collect();
        assert_eq!(rules, expected);
        assert!(!raw(&Policy::default(), Family::V6).contains("zone"));
    }
}
