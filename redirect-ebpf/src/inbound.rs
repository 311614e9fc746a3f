//! The other direction: a SYN arrives for any port of the pod. Give it to the sidecar's inbound listener; no
//! header is rewritten, so the accepted socket's local address is the original destination and the client's
//! address is kept.
//!
//! The context of sk_lookup does not say in which network namespace it runs. So what is linked to a pod's
//! namespace is a stub of some forty instructions (`redirect_user::kernel::object`), which leaves
//! the pod's cookie in ENTERED and goes on here by a tail call. It does not for a SYN over `lo` that needs no
//! steering, which is nearly every connection of an application to its sidecar.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use redirect_common::dns::{DnsClient, proxy, slot_key};
use redirect_common::{Event, Family, Inbound, Ip, PodConfig, decide_inbound, flags, in_prefix, is_steered};

use crate::ctx::Lookup;
use crate::facts::{PacketFacts, is_own};
use crate::listener::steer;
use crate::stats::{count, count_refused};
use crate::trace;
use crate::{lookups, maps};

/// Runs when no established socket takes an incoming packet, after the pod's own program.
#[sk_lookup]
pub(crate) fn inbound(ctx: SkLookupContext) -> u32 {
    let packet = Lookup::new(&ctx);
    let Some((cookie, pod)) = lookups::take_entered() else { return SK_DROP };
    if !packet.is_tcp() {
        return datagram(&packet, cookie, pod);
    }
    if packet.over_lo() {
        return from_application(&packet, cookie);
    }
    if let Some(port) = lookups::question() {
        // The guard has decided. It wants to know who would get the packet, and counts what becomes of it.
        return if port != 0 && steer(&packet, cookie, port, packet.family()) { SK_PASS } else { SK_DROP };
    }
    let (client, dst) = (packet.remote(), packet.local());
    if from_inside(pod, cookie, &client.ip, &dst.ip, packet.family()) {
        return SK_PASS;
    }
    if in_prefix(&dst.ip) {
        // This prefix is the way from the application to the sidecar; nothing from outside may use it. (127/8
        // arrives where net.ipv4.conf.*.route_localnet is on.)
        count(cookie, Event::InboundForeign);
        return SK_DROP;
    }
    let facts = PacketFacts { cookie, pod, interface: packet.interface() };
    let verdict = decide_inbound(dst.port, &facts);
    let wanted = match verdict {
        Inbound::Direct(_) => false,
        Inbound::Redirect(rule) => facts.wanted(dst.port, rule),
    };
    let steered = wanted && steer(&packet, cookie, pod.inbound_port, packet.family());
    let valid = maps::still(pod, cookie);
    let action = match verdict {
        Inbound::Direct(_) if valid => {
            count(cookie, Event::InboundDirect);
            SK_PASS
        }
        // Counted when the sidecar has accepted it, in `original_dst`: a look-up is not yet a connection.
        Inbound::Redirect(_) if valid && steered => SK_PASS,
        Inbound::Direct(_) | Inbound::Redirect(_) => {
            // The client gets a reset, as from a REDIRECT to a port on which no socket listens.
            if valid {
                count_refused(cookie, wanted.into());
            } else {
                count(cookie, Event::ConfigChanged);
            }
            SK_DROP
        }
    };
    trace::inbound(cookie, (packet.remote(), dst), verdict, steered);
    action
}

/// A SYN over `lo`: an application on its way to a listener of the sidecar that is bound to localhost, or to
/// another address, and would not be found.
#[inline(always)]
fn from_application(packet: &Lookup, cookie: u64) -> u32 {
    let dst = packet.local();
    if is_steered(&dst.ip) {
        steer(packet, cookie, dst.port, packet.family());
    }
    SK_PASS
}

/// A datagram for no connected socket. A question, which goes to a server's slot, is for the DNS proxy only:
/// another user's socket may have been there before the pod was attached. The proxy's wildcard socket is
/// closed to the outside; who asked it where is noted as long as it is not known to answer from there.
#[inline(always)]
fn datagram(packet: &Lookup, cookie: u64, pod: &'static PodConfig) -> u32 {
    let (client, at) = (packet.remote(), packet.local());
    if pod.flags & flags::DNS == 0 || at.port != pod.dns_port {
        return SK_PASS;
    }
    let state = maps::dns_proxy(cookie).map_or(0, |proxy| proxy.state);
    if state & proxy::asked_over(packet.family()) == 0 {
        if slot_key(cookie, &at.ip).is_none() {
            return SK_PASS;
        }
        count(cookie, Event::DnsRefused);
        return SK_DROP;
    }
    if !packet.over_lo() && !from_inside(pod, cookie, &client.ip, &at.ip, packet.family()) {
        let opened = match packet.family() {
            Family::V4 => proxy::OPENED4,
            Family::V6 => proxy::OPENED6,
        };
        if state & opened == 0 {
            return SK_PASS;
        }
        count(cookie, Event::InboundForeign);
        return SK_DROP;
    }
    if state & (proxy::ANSWERS_WHERE_ASKED | proxy::ANSWERS_ELSEWHERE) != proxy::ANSWERS_WHERE_ASKED {
        maps::note_question(&DnsClient::new(cookie, client), at.ip);
    }
    SK_PASS
}

/// Whether the packet was sent inside the pod, to an address of an interface other than `lo`. It travels over
/// `lo`, but the kernel names the interface that has the address (`ip_route_output_key_hash_rcu()`,
/// `ipv6_rcv()`; seen on Linux 6.18). The source tells: from outside the kernel takes no packet with a source
/// that is loopback or its own.
#[inline(always)]
fn from_inside(pod: &PodConfig, cookie: u64, client: &Ip, dst: &Ip, family: Family) -> bool {
    client.same(dst) || client.is_loopback_of(family) || is_own(pod, cookie, client, family)
}
