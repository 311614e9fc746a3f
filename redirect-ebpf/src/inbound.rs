//! The other direction: a SYN arrives for any port of the pod. Give it to the sidecar's inbound listener; no header is
//! rewritten, so the accepted socket's local address is the original destination and the client's address is kept.
//!
//! The context of sk_lookup does not say in which network namespace it runs. So what is linked to a pod's namespace is a
//! program of a dozen instructions of its own (`redirect_user::object`), which leaves the pod's cookie in ENTERED and goes on
//! here by a tail call.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use redirect_common::policy::InboundMode;
use redirect_common::{
    Event, Inbound, InboundFacts, Ip, LISTENER_SLOTS, ListenerKey, PodConfig, decide_inbound, flags,
    in_spread6, set,
};

use crate::ctx::Lookup;
use crate::maps::{self, in_set};
use crate::stats::count;
use crate::trace;

/// Runs when no established socket takes an incoming packet, after the pod's own program.
#[sk_lookup]
pub(crate) fn inbound(ctx: SkLookupContext) -> u32 {
    let packet = Lookup::new(&ctx);
    if !packet.is_tcp() || packet.over_lo() {
        return SK_PASS;
    }
    let cookie = maps::entered();
    let Some(pod) = maps::pod(cookie) else { return SK_PASS };
    let (client, dst) = (packet.remote(), packet.local());
    if from_inside(cookie, &client.ip, &dst.ip) {
        return SK_PASS;
    }
    if in_spread6(&dst.ip) {
        // This prefix is the way from the application to the sidecar; nobody outside may use it.
        count(cookie, Event::InboundForeign);
        return SK_DROP;
    }
    let facts = PacketFacts { cookie, pod, interface: packet.interface() };
    let verdict = decide_inbound(dst.port, &facts);
    let steered = matches!(verdict, Inbound::Redirect(_)) && steer(&packet, cookie, pod);
    let action = match verdict {
        Inbound::Direct(_) => {
            count(cookie, Event::InboundDirect);
            SK_PASS
        }
        Inbound::Redirect(_) if steered => {
            count(cookie, Event::InboundRedirected);
            SK_PASS
        }
        Inbound::Redirect(_) => {
            // The client gets a reset, as from a REDIRECT to a port on which nobody listens.
            count(cookie, Event::InboundRefused);
            SK_DROP
        }
    };
    trace::inbound(pod, cookie, (packet.remote(), dst), verdict, steered);
    action
}

/// Whether the packet was sent inside the pod, to an address of an interface other than `lo`. It travels over `lo`, but
/// the kernel names the interface that has the address (`ip_route_output_key_hash_rcu()`, `ipv6_rcv()`; seen on Linux
/// 6.18). The source tells: from outside the kernel takes no packet with a source that is loopback or its own.
#[inline(always)]
fn from_inside(cookie: u64, client: &Ip, dst: &Ip) -> bool {
    client.same(dst) || client.is_loopback() || maps::own_address(cookie, client)
}

/// Finds a listener that takes the packet; an IPv6 listener may serve IPv4 as well.
#[inline(always)]
fn steer(packet: &Lookup, cookie: u64, pod: &PodConfig) -> bool {
    let v4 = packet.is_v4();
    for slot in 0..LISTENER_SLOTS {
        if packet.assign(&ListenerKey::new(cookie, pod.inbound_port, v4, slot)) {
            return true;
        }
    }
    if v4 {
        for slot in 0..LISTENER_SLOTS {
            if packet.assign(&ListenerKey::new(cookie, pod.inbound_port, false, slot)) {
                return true;
            }
        }
    }
    false
}

/// The pod's inbound policy as the maps hold it, and the interface of this packet.
struct PacketFacts {
    cookie: u64,
    pod: &'static PodConfig,
    interface: u32,
}

impl InboundFacts for PacketFacts {
    #[inline(always)]
    fn arrived_on_excluded_interface(&self) -> bool {
        self.pod.flags & flags::INBOUND_INTERFACES != 0 && in_set(self.cookie, set::INTERFACE, self.interface)
    }
    #[inline(always)]
    fn mode(&self) -> InboundMode {
        if self.pod.flags & flags::INBOUND_ALL != 0 {
            InboundMode::All
        } else if self.pod.flags & flags::INBOUND_LIST != 0 {
            InboundMode::List
        } else {
            InboundMode::Off
        }
    }
    #[inline(always)]
    fn port_excluded(&self, port: u32) -> bool {
        in_set(self.cookie, set::INBOUND_EXCLUDED, port)
    }
    #[inline(always)]
    fn port_listed(&self, port: u32) -> bool {
        in_set(self.cookie, set::INBOUND_INCLUDED, port)
    }
}
