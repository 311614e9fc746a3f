//! The rules as iptables has them: each a list of matches that must all hold, and an action. No order but
//! that of the list, no conclusion from one rule to the next.

use std::net::IpAddr;

use redirect_common::{Family, Rule};

use crate::world::{Groups, InboundPorts, Include, Packet, Policy, Range};

/// One match of a rule.
#[derive(Clone, Debug)]
pub(crate) enum Match {
    /// `-i NAME` in PREROUTING, `-o NAME` in OUTPUT.
    Interface(&'static str),
    /// `-p tcp`
    Tcp,
    /// `-p udp`
    Udp,
    /// `-s ADDRESS`
    Source(IpAddr),
    /// `! -s ADDRESS`
    NotSource(IpAddr),
    /// `-d RANGE`
    Destination(Range),
    /// `! -d ADDRESS`
    NotDestination(IpAddr),
    /// `--dport PORT`
    Port(u16),
    /// `! --dport PORT`, or `-m multiport ! --dports PORT,PORT`
    NotPorts(Vec<u16>),
    /// `-m owner --uid-owner UID`
    Uid(u32),
    /// `-m owner ! --uid-owner UID`
    NotUid(u32),
    /// `-m owner --gid-owner GID`
    Gid(u32),
    /// `-m owner ! --gid-owner GID`
    NotGid(u32),
}

impl Match {
    fn holds(&self, packet: &Packet) -> bool {
        match self {
            Match::Interface(name) => packet.interface() == *name,
            Match::Tcp => packet.tcp,
            Match::Udp => !packet.tcp,
            Match::Source(ip) => packet.source() == *ip,
            Match::NotSource(ip) => packet.source() != *ip,
            Match::Destination(range) => range.contains(packet.dst),
            Match::NotDestination(ip) => packet.dst != *ip,
            Match::Port(port) => packet.port == *port,
            Match::NotPorts(ports) => !ports.contains(&packet.port),
            Match::Uid(uid) => packet.uid == *uid,
            Match::NotUid(uid) => packet.uid != *uid,
            Match::Gid(gid) => packet.gid == *gid,
            Match::NotGid(gid) => packet.gid != *gid,
        }
    }
}

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Leaves it alone.
    Return,
    /// Rewrites its destination to this port of the pod itself.
    Redirect(u16),
}

/// One rule; `number` is its place in the documentation.
#[derive(Clone, Debug)]
pub(crate) struct IpRule {
    matches: Vec<Match>,
    action: Action,
    number: Rule,
}

/// The first rule that matches decides; behind the last one, packets are left alone.
pub(crate) fn verdict(rules: &[IpRule], packet: &Packet) -> (Action, Rule) {
    let first = rules.iter().find(|rule| rule.matches.iter().all(|one| one.holds(packet)));
    first.map_or((Action::Return, Rule::NoMatch), |rule| (rule.action, rule.number))
}

const OUTBOUND: Action = Action::Redirect(15001);
const INBOUND: Action = Action::Redirect(15006);
const DNS: Action = Action::Redirect(15053);

/// `OUTPUT` with all that it jumps to, in the table of one family.
pub(crate) fn output_rules(policy: &Policy, family: Family) -> Vec<IpRule> {
    let mut list = List { rules: Vec::new() };
    for name in policy.excluded_interfaces() {
        list.add(Rule::ExcludedInterface, Action::Return, [Match::Interface(name)]);
    }
    if policy.tproxy {
        tproxy_rules(&mut list, policy, family);
    }
    for port in &policy.exclude_ports {
        list.add(Rule::ExcludedPort, Action::Return, [Match::Tcp, Match::Port(*port)]);
        list.add(Rule::ExcludedPort, Action::Return, [Match::Udp, Match::Port(*port)]);
    }
    let passthrough = Match::Source(address(family, "127.0.0.6", "::6"));
    list.add(Rule::Passthrough, Action::Return, [Match::Interface("lo"), passthrough]);
    owner_rules(&mut list, policy, family);
    match &policy.groups {
        Groups::AllBut(groups) => {
            groups.iter().for_each(|gid| list.add(Rule::OwnerGroup, Action::Return, [Match::Gid(*gid)]))
        }
        Groups::Only(groups) => {
            list.add(Rule::OwnerGroup, Action::Return, groups.iter().map(|gid| Match::NotGid(*gid)));
        }
    }
    if policy.dns {
        list.add(Rule::Dns, DNS, [Match::Tcp, Match::Port(53)]);
        list.add(Rule::Dns, DNS, [Match::Udp, Match::Port(53)]);
    }
    destination_rules(&mut list, policy, family);
    list.rules
}

/// What OUTPUT of the table mangle marks with 1338, and PREROUTING takes to the sidecar by that mark; both
/// leave alone what has 127.0.0.6 or ::6 as its source. It happens to what the table nat has left alone, too.
fn tproxy_rules(list: &mut List, policy: &Policy, family: Family) {
    let (localhost, passthrough) = (address(family, "127.0.0.1", "::1"), address(family, "127.0.0.6", "::6"));
    let captured = match &policy.inbound {
        InboundPorts::All => vec![Match::NotPorts(policy.exclude_inbound.iter().copied().collect())],
        InboundPorts::List(ports) => ports.iter().copied().map(Match::Port).collect(),
    };
    for (number, owner) in [
        (Rule::ProxyUidSelfCall, Match::Uid(policy.proxy_uid)),
        (Rule::ProxyGidSelfCall, Match::Gid(policy.proxy_gid)),
    ] {
        for ports in captured.iter().cloned() {
            let (from, to) = (Match::NotSource(passthrough), Match::NotDestination(localhost));
            let matches = [Match::Interface("lo"), Match::Tcp, from, to, owner.clone(), ports];
            list.add(number, INBOUND, matches);
        }
    }
}

/// Rules 3 to 8.
fn owner_rules(list: &mut List, policy: &Policy, family: Family) {
    let localhost = address(family, "127.0.0.1", "::1");
    let self_call = |ports: &[u16], owner: Match| {
        [
            Match::Interface("lo"),
            Match::NotDestination(localhost),
            Match::Tcp,
            Match::NotPorts(ports.to_vec()),
            owner,
        ]
    };
    let to_oneself = |owner: Match| {
        let mut matches = vec![Match::Interface("lo"), owner];
        if policy.dns {
            matches.extend([Match::Tcp, Match::NotPorts(vec![53])]);
        }
        matches
    };
    let exempt: &[u16] = if policy.dns { &[53, 15008] } else { &[15008] };
    let (uid, gid) = (policy.proxy_uid, policy.proxy_gid);
    list.add(Rule::ProxyUidSelfCall, INBOUND, self_call(exempt, Match::Uid(uid)));
    if !policy.loopback_included() {
        list.add(Rule::AppOverLoopback, Action::Return, to_oneself(Match::NotUid(uid)));
    }
    list.add(Rule::ProxyUid, Action::Return, [Match::Uid(uid)]);
    list.add(Rule::ProxyGidSelfCall, INBOUND, self_call(&[15008], Match::Gid(gid)));
    if !policy.loopback_included() {
        list.add(Rule::AppOverLoopbackByGid, Action::Return, to_oneself(Match::NotGid(gid)));
    }
    list.add(Rule::ProxyGid, Action::Return, [Match::Gid(gid)]);
}

/// Rules 11 to 14.
fn destination_rules(list: &mut List, policy: &Policy, family: Family) {
    let localhost = Range::host(address(family, "127.0.0.1", "::1"));
    list.add(Rule::Localhost, Action::Return, [Match::Destination(localhost)]);
    for range in policy.exclude.iter().filter(|range| range.family() == family) {
        list.add(Rule::ExcludedRange, Action::Return, [Match::Destination(*range)]);
    }
    for port in &policy.include_ports {
        list.add(Rule::IncludedPort, OUTBOUND, [Match::Tcp, Match::Port(*port)]);
    }
    match &policy.include {
        Include::All => list.add(Rule::IncludedRange, OUTBOUND, [Match::Tcp]),
        Include::Ranges(ranges) => {
            for range in ranges.iter().filter(|range| range.family() == family) {
                list.add(Rule::IncludedRange, OUTBOUND, [Match::Destination(*range), Match::Tcp]);
            }
        }
    }
}

/// `PREROUTING` with all that it jumps to; the numbers of these rules are not compared.
pub(crate) fn inbound_rules(policy: &Policy) -> Vec<IpRule> {
    let mut list = List { rules: Vec::new() };
    for name in policy.excluded_interfaces() {
        list.add(Rule::NoMatch, Action::Return, [Match::Interface(name)]);
    }
    // The exception is in the table nat; in TPROXY mode the chain is in mangle.
    let hbone = (!policy.tproxy).then_some([Match::Tcp, Match::Port(15008)]);
    match &policy.inbound {
        InboundPorts::All => {
            hbone.into_iter().for_each(|hbone| list.add(Rule::NoMatch, Action::Return, hbone));
            for port in &policy.exclude_inbound {
                list.add(Rule::NoMatch, Action::Return, [Match::Tcp, Match::Port(*port)]);
            }
            list.add(Rule::NoMatch, INBOUND, [Match::Tcp]);
        }
        // Nothing jumps to the chain.
        InboundPorts::List(ports) if ports.is_empty() => {}
        InboundPorts::List(ports) => {
            hbone.into_iter().for_each(|hbone| list.add(Rule::NoMatch, Action::Return, hbone));
            for port in ports {
                list.add(Rule::NoMatch, INBOUND, [Match::Tcp, Match::Port(*port)]);
            }
        }
    }
    list.rules
}

struct List {
    rules: Vec<IpRule>,
}

impl List {
    fn add(&mut self, number: Rule, action: Action, matches: impl IntoIterator<Item = Match>) {
        self.rules.push(IpRule { matches: matches.into_iter().collect(), action, number });
    }
}

fn address(family: Family, four: &str, six: &str) -> IpAddr {
    (if family == Family::V6 { six } else { four }).parse().expect("an address")
}
