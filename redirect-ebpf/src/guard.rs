//! The guard: the second line. Two filters on the interfaces by which packets leave and enter the pod, in its
//! own network namespace. They hold their programs, and these their maps, so that nothing else of ours has to
//! be there: no link, no pin, no cgroup, no process. They end with the interface.
//!
//! They look at SYNs, at forwarded answers to SYNs, and at DNS questions where those are captured. What the
//! policy gives to the sidecar and is on its way out of the pod all the same went around us: it is refused
//! and counted by the reason that can be seen. What arrives and is the sidecar's is bound to the sidecar's
//! socket.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use redirect_common::{
    Caller, Event, Facts, Flow, GuardedPod, Inbound, InboundFacts as _, InboundRule, Ip, Outbound, PodConfig,
    Protocol, Rule, Target, decide, decide_inbound, flags, set,
};

use crate::ctx::{Choice, Kind, Opening, Packet, Way, inside_only};
use crate::facts::{PacketFacts, PodFacts};
use crate::listener::steer;
use crate::stats::{count, count_refused};
use crate::trace;
use crate::{lookups, maps};

/// "Ask the next filter": neighbours' filters on the interface keep working.
const GO_ON: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// A gid that a process cannot have: the packet does not show its sender's.
const UNKNOWN: u32 = u32::MAX;

/// A packet leaves the pod.
#[classifier]
pub(crate) fn guard_egress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx, Way::Out);
    let Some(opening) = packet.opening() else { return GO_ON };
    let Some(guarded) = maps::guarded(packet.index()) else { return GO_ON };
    match maps::pod(guarded.cookie) {
        Some(pod) if !stopped(&packet, &opening, &guarded, pod) => GO_ON,
        // Without a configuration, or an entry: the pod was enrolled, or there would be no filter; whose
        // traffic is whose is not known any more.
        _ => packet.reset(&opening, Way::Out).unwrap_or(DROP),
    }
}

/// Whether a packet is to be dropped on its way out; counts and traces it.
#[inline(always)]
fn stopped(packet: &Packet, opening: &Opening, guarded: &GuardedPod, pod: &'static PodConfig) -> bool {
    if left_to_another_interface(packet, pod) {
        return false;
    }
    if opening.kind == Kind::ForwardedAnswer {
        return answered_behind(packet, opening, guarded, pod);
    }
    let Some((event, rule, uid)) = leak(packet, opening, guarded, pod) else { return false };
    count(guarded.cookie, event);
    trace::leaving(guarded, opening, rule, uid);
    guarded.audit == 0
}

/// Whether a SYN that the policy gives to the sidecar was forwarded to something behind the pod, whose answer
/// this is. `guard_ingress` binds such a SYN, so that it is not forwarded. Before Linux 6.6 it cannot where
/// the sidecar's socket has SO_REUSEPORT, and elsewhere it may have been taken off.
#[inline(always)]
fn answered_behind(packet: &Packet, answer: &Opening, guarded: &GuardedPod, pod: &'static PodConfig) -> bool {
    let facts = PacketFacts { cookie: guarded.cookie, pod, interface: packet.interface() };
    let verdict = decide_inbound(answer.src.port, &facts);
    if matches!(verdict, Inbound::Direct(_)) {
        return false;
    }
    count(guarded.cookie, Event::GuardForwarded);
    trace::arriving(guarded, &answer.turned(), verdict, false);
    guarded.audit == 0
}

/// Why a packet must not leave the pod, by which rule of the policy, and whose it is.
#[inline(always)]
fn leak(
    packet: &Packet,
    opening: &Opening,
    guarded: &GuardedPod,
    pod: &'static PodConfig,
) -> Option<(Event, Rule, u32)> {
    let tcp = opening.kind != Kind::Question;
    if !tcp && pod.flags & flags::DNS == 0 {
        return None;
    }
    let sender = packet.sender();
    if sender.is_some_and(|sender| sender.passed) {
        return None;
    }
    let uid = if sender.is_some() { packet.uid() } else { UNKNOWN };
    if inside_only(&opening.dst.ip) {
        return Some((Event::GuardLoopback, Rule::Localhost, uid));
    }
    if opening.kind == Kind::Hidden {
        return Some((Event::GuardHidden, Rule::NoMatch, uid));
    }
    let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
    let flow = Flow::new(protocol, opening.dst, Ip::NONE, Caller { uid, gid: UNKNOWN });
    let facts = LeavingFacts {
        policy: PodFacts { cookie: guarded.cookie, pod, family: flow.family },
        proxy_uid: guarded.proxy_uid,
        interface: packet.interface(),
    };
    match decide(&flow, &facts) {
        Outbound::Direct(_) => None,
        Outbound::Redirect(Target::Dns, rule) => Some((Event::GuardDns, rule, uid)),
        Outbound::Redirect(_, rule) => Some(match sender {
            None => (Event::GuardForwarded, rule, uid),
            Some(sender) if sender.raw => (Event::GuardRaw, rule, uid),
            Some(_) => (Event::GuardOutbound, rule, uid),
        }),
    }
}

/// A packet enters the pod.
#[classifier]
pub(crate) fn guard_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx, Way::In);
    let Some(opening) = packet.opening() else { return GO_ON };
    if opening.kind == Kind::Question {
        return GO_ON;
    }
    let Some(guarded) = maps::guarded(packet.index()) else { return GO_ON };
    match maps::pod(guarded.cookie) {
        Some(pod) if admitted(&packet, &opening, &guarded, pod) => GO_ON,
        _ => packet.reset(&opening, Way::In).unwrap_or(DROP),
    }
}

/// Whether a packet may go on into the pod. What is the sidecar's is bound to its socket then.
#[inline(always)]
fn admitted(packet: &Packet, opening: &Opening, guarded: &GuardedPod, pod: &'static PodConfig) -> bool {
    // A packet with a tag comes by twice; what it is bound to, it stays bound to.
    if left_to_another_interface(packet, pod) || packet.bound_to(pod.inbound_port) {
        return true;
    }
    let facts = PacketFacts { cookie: guarded.cookie, pod, interface: packet.interface() };
    if opening.kind == Kind::Hidden {
        return hidden_on_arrival(guarded, pod, opening, &facts);
    }
    let verdict = decide_inbound(opening.dst.port, &facts);
    let Inbound::Redirect(rule) = verdict else { return true };
    let listener = if facts.wanted(opening.dst.port, rule) { pod.inbound_port } else { 0 };
    let arrival = Arrival { packet, opening, guarded, pod, verdict, listener };
    if guarded.audit != 0 {
        arrival.audit();
        return true;
    }
    arrival.bound()
}

/// A packet that has no header to be judged by, where some port is captured.
#[inline(always)]
fn hidden_on_arrival(guarded: &GuardedPod, pod: &PodConfig, opening: &Opening, facts: &PacketFacts) -> bool {
    let captured = pod.flags & (flags::INBOUND_ALL | flags::INBOUND_LIST) != 0;
    if !captured || facts.arrived_on_excluded_interface() {
        return true;
    }
    count(guarded.cookie, Event::GuardHidden);
    trace::arriving(guarded, opening, Inbound::Redirect(InboundRule::All), false);
    guarded.audit != 0
}

/// A packet that the policy gives to the sidecar.
struct Arrival<'a> {
    packet: &'a Packet,
    opening: &'a Opening,
    guarded: &'a GuardedPod,
    pod: &'a PodConfig,
    verdict: Inbound,
    /// The port of the sidecar's listener, or 0 where it may not have the packet.
    listener: u32,
}

impl Arrival<'_> {
    /// Counts what would have gone past the sidecar, and leaves the packet alone.
    #[inline(always)]
    fn audit(&self) {
        let Arrival { packet, opening, guarded, pod, .. } = self;
        if lookups::asking(self.listener, || packet.would_pass_by(opening, pod.inbound_port)) {
            count(guarded.cookie, Event::GuardInbound);
            trace::arriving(guarded, opening, self.verdict, false);
        }
    }

    /// Binds the packet to the sidecar's socket; false where that cannot be.
    #[inline(always)]
    fn bound(&self) -> bool {
        let Arrival { packet, opening, guarded, pod, .. } = self;
        let cookie = guarded.cookie;
        if inside_only(&opening.dst.ip) {
            count(cookie, Event::InboundForeign);
            return false;
        }
        let choice = lookups::asking(self.listener, || {
            if packet.for_another_station() { Choice::None } else { packet.choice(opening, pod.inbound_port) }
        });
        let steered = match choice {
            // `inbound` will run for it, count it and trace it.
            Choice::Found => return true,
            Choice::Bound => true,
            Choice::None => false,
            Choice::Other | Choice::OtherAgain => {
                count(cookie, Event::GuardInbound);
                choice == Choice::Other
                    && (steer(*packet, cookie, pod.inbound_port, opening.dst.ip.family())
                        || packet.bind_to_port(opening, pod.inbound_port))
            }
        };
        if !steered {
            // What is steered is counted when the sidecar has accepted it.
            count_refused(cookie, self.listener.into());
        }
        trace::arriving(guarded, opening, self.verdict, steered);
        steered
    }
}

/// A tagged packet of an interface on top of this one, in a pod that excludes some interfaces: whether it is
/// one of those is known only there, where a filter of its own stands if it is not.
#[inline(always)]
fn left_to_another_interface(packet: &Packet, pod: &PodConfig) -> bool {
    pod.flags & flags::INBOUND_INTERFACES != 0 && packet.tagged()
}

/// The pod's policy for a packet that is on its way out: it is not over lo, its interface is known, and its
/// sender's group is not. What the policy lets pass by its group, `connect` has marked.
struct LeavingFacts {
    policy: PodFacts,
    proxy_uid: u32,
    interface: u32,
}

impl Facts for LeavingFacts {
    #[inline(always)]
    fn port_excluded(&self, port: u32) -> bool {
        self.policy.port_excluded(port)
    }
    #[inline(always)]
    fn port_included(&self, port: u32) -> bool {
        self.policy.port_included(port)
    }
    #[inline(always)]
    fn range_excluded(&self, ip: &Ip) -> bool {
        self.policy.range_excluded(ip)
    }
    #[inline(always)]
    fn range_included(&self, ip: &Ip) -> bool {
        self.policy.range_included(ip)
    }
    #[inline(always)]
    fn own_address(&self, _ip: &Ip) -> bool {
        false
    }
    #[inline(always)]
    fn interface_excluded(&self, _ip: &Ip) -> bool {
        self.policy.pod.flags & flags::INBOUND_INTERFACES != 0
            && maps::in_set(self.policy.cookie, set::INTERFACE, self.interface)
    }
    #[inline(always)]
    fn lo_excluded(&self) -> bool {
        false
    }
    #[inline(always)]
    fn loopback_included(&self) -> bool {
        false
    }
    #[inline(always)]
    fn group_excluded(&self, _gid: u32) -> bool {
        false
    }
    #[inline(always)]
    fn dns_captured(&self) -> bool {
        self.policy.dns_captured()
    }
    #[inline(always)]
    fn dns_server(&self, ip: &Ip) -> bool {
        self.policy.dns_server(ip)
    }
    #[inline(always)]
    fn tproxy_captures(&self, _port: u32) -> bool {
        // A question about the pod's own addresses only.
        false
    }
    #[inline(always)]
    fn proxy_uid(&self) -> u32 {
        self.proxy_uid
    }
    #[inline(always)]
    fn proxy_gid(&self) -> u32 {
        // Not the caller's, which is `UNKNOWN`.
        0
    }
}
