//! Every way in which applications ask DNS servers, beside Istio's rules and beside ours: what the
//! application sees, and which client the DNS proxy sees, must be the same.

use harness::dns::{DnsProxy, ask};
use harness::{Node, Pod, User, Wire, kernel_test};
use redirect_user::policy::Policy;

use crate::enforce::Enforcer;

/// What `pod-dns ask` knows.
const WAYS: [&str; 12] = [
    "order",
    "lost",
    "peek",
    "unnamed",
    "connected",
    "dissolve",
    "reconnect",
    "connected-elsewhere",
    "unicast-if",
    "unicast-if-connected",
    "packet-info",
    "stream",
];
/// Two servers that do not exist, and another address, which the pod can reach.
const SERVERS: [[&str; 3]; 3] = [
    ["192.0.2.10:53", "198.51.100.10:53", "10.77.0.1:9999"],
    ["[2001:db8::10]:53", "[2001:db8:1::10]:53", "[fd77::1]:9999"],
    ["127.0.0.53:53", "127.0.0.54:53", "10.77.0.1:9999"],
];
/// A proxy without IP_PKTINFO cannot be helped where answers change places or get lost. (What the kernel
/// refuses to a connected socket counts as asked again: the ICMP error looks its socket up, too.)
const NEED_PACKET_INFO: [&str; 3] = ["order", "lost", "connected-elsewhere"];

struct World {
    pod: Pod,
    proxy: DnsProxy,
    _wire: Wire,
}

impl World {
    fn new(node: &Node, enforcer: Enforcer, proxy: fn(&Pod) -> DnsProxy) -> World {
        let wire = node.new_wire(&format!("{enforcer:?}").to_lowercase());
        let pod = wire.pod("dns");
        let policy = Policy { dns_capture: true, ..Policy::default() };
        enforcer.enforce(node, &pod, &policy);
        let proxy = proxy(&pod);
        World { pod, proxy, _wire: wire }
    }

    /// What both ends saw. The proxy's own addresses differ, as is meant, and so do the client's ports.
    fn both_ends(&mut self, way: &str, servers: &[&str]) -> (String, Vec<String>) {
        let text = ask(&self.pod, User::APP, way, servers);
        let client = |line: &String| {
            let (who, _) = line.split_once(" at ").unwrap_or((line, ""));
            who.rsplit_once(':').map_or(who, |(client, _port)| client).to_owned()
        };
        (text, self.proxy.take_questions().iter().map(client).collect())
    }
}

/// One line for each way that came to another end.
fn compare(iptables: &mut World, ours: &mut World, without: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for servers in &SERVERS {
        for way in WAYS.iter().filter(|way| !without.contains(way)) {
            let (expected, seen) = (iptables.both_ends(way, servers), ours.both_ends(way, servers));
            if expected != seen {
                wrong.push(format!("{way} {servers:?}\n    iptables: {expected:?}\n    ours:     {seen:?}"));
            }
        }
    }
    wrong
}

#[test]
fn every_way_to_ask_a_dns_server() {
    kernel_test(|node| {
        let mut iptables = World::new(node, Enforcer::Iptables, DnsProxy::start);
        let mut ours = World::new(node, Enforcer::Ours, DnsProxy::start);
        let wrong = compare(&mut iptables, &mut ours, &[]);
        assert!(wrong.is_empty(), "{} ways came to a wrong end:\n{}", wrong.len(), wrong.join("\n"));
    });
}

#[test]
fn a_dns_proxy_that_answers_from_another_address() {
    kernel_test(|node| {
        let mut iptables = World::new(node, Enforcer::Iptables, DnsProxy::plain);
        let mut ours = World::new(node, Enforcer::Ours, DnsProxy::plain);
        let wrong = compare(&mut iptables, &mut ours, &NEED_PACKET_INFO);
        assert!(wrong.is_empty(), "{} ways came to a wrong end:\n{}", wrong.len(), wrong.join("\n"));
    });
}
