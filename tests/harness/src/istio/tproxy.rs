//! The table `mangle`, which has rules in TPROXY mode: a connection from outside is given to the sidecar with
//! its addresses as they are, and what the sidecar sends in its client's name finds the application, and
//! back.

use std::process::Command;

use redirect_common::addr::Family;
use redirect_user::policy::{InterceptionMode, Policy, Ports};

use super::Rules;
use crate::netns::NetNs;

/// Routes marked packets to the pod itself. Without a mark nothing of it matters.
pub fn route_marked(netns: &NetNs) {
    netns.ip("rule add fwmark 1337 lookup 133\n\
         route add local 0.0.0.0/0 dev lo table 133\n\
         route add local ::/0 dev lo table 133");
    // A line of a batch cannot say that a rule is for IPv6.
    let _ =
        netns.output_of(Command::new("ip").args(["-6", "rule", "add", "fwmark", "1337", "lookup", "133"]));
}

/// The table `mangle` of one family.
#[must_use]
pub fn mangle(policy: &Policy, family: Family) -> String {
    let mut rules = Rules { text: String::new(), policy, family };
    rules.text.push_str("*mangle\n");
    for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
        rules.text.push_str(&format!(":{chain} ACCEPT [0:0]\n"));
    }
    if policy.interception_mode == InterceptionMode::Tproxy {
        for chain in ["INBOUND", "DIVERT", "TPROXY"] {
            rules.text.push_str(&format!(":ISTIO_{chain} - [0:0]\n"));
        }
        rules.tproxy();
    }
    rules.text.push_str("COMMIT\n");
    rules.text
}

impl Rules<'_> {
    fn tproxy(&mut self) {
        let (localhost, passthrough) = (self.localhost(), self.passthrough());
        for interface in &self.policy.exclude_interfaces {
            self.add(format!("PREROUTING -i {interface} -j RETURN"));
            self.add(format!("OUTPUT -o {interface} -j RETURN"));
        }
        self.add("ISTIO_DIVERT -j MARK --set-mark 1337");
        self.add("ISTIO_DIVERT -j ACCEPT");
        self.add(format!(
            "ISTIO_TPROXY ! -d {localhost} -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port {}",
            self.policy.proxy.inbound_port
        ));
        // What keeps the sidecar's own packets, and those of the application to itself, from coming back.
        self.add("ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN");
        self.add(format!("ISTIO_INBOUND -p tcp -s {passthrough} -i lo -j RETURN"));
        self.add("ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN");
        self.captured();
        self.add("PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark");
        self.add("OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN");
        let (uid, gid) = (self.policy.proxy.uid, self.policy.proxy.gid);
        for owner in [format!("--uid-owner {uid}"), format!("--gid-owner {gid}")] {
            self.add(format!(
                "OUTPUT ! -d {localhost} -p tcp -o lo -m owner {owner} -j MARK --set-mark 1338"
            ));
        }
        self.add("OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark");
    }

    fn captured(&mut self) {
        const ESTABLISHED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT";
        match &self.policy.include_inbound_ports {
            Ports::All => {
                for port in &self.policy.exclude_inbound_ports {
                    self.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j RETURN"));
                }
                self.add(format!("ISTIO_INBOUND -p tcp {ESTABLISHED}"));
                self.add("ISTIO_INBOUND -p tcp -j ISTIO_TPROXY");
            }
            Ports::List(ports) if ports.is_empty() => return,
            Ports::List(ports) => {
                for port in ports {
                    self.add(format!("ISTIO_INBOUND -p tcp --dport {port} {ESTABLISHED}"));
                    self.add(format!("ISTIO_INBOUND -p tcp --dport {port} -j ISTIO_TPROXY"));
                }
            }
        }
        self.add("PREROUTING -p tcp -j ISTIO_INBOUND");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_gives_istios_rules_for_tproxy() {
        let policy = Policy { interception_mode: InterceptionMode::Tproxy, ..Policy::default() };
        let expected = "\
            -A ISTIO_DIVERT -j MARK --set-mark 1337\n\
            -A ISTIO_DIVERT -j ACCEPT\n\
            -A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006\n\
            -A ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp -s 127.0.0.6/32 -i lo -j RETURN\n\
            -A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN\n\
            -A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n\
            -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n\
            -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
            -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark\n\
            -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN\n\
            -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338\n\
            -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338\n\
            -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark\n";
        let text = mangle(&policy, Family::V4);
        let rules: String =
            text.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")).collect();
        assert_eq!(rules, expected);
        assert!(!super::super::nat(&policy, Family::V4).contains("PREROUTING -p tcp"));
        assert!(!mangle(&Policy::default(), Family::V4).contains("-A"));
    }
}
