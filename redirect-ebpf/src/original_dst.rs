//! The sidecar asks its accepted socket for SO_ORIGINAL_DST (step 3 of a connection, see `connect`), which
//! without connection tracking the kernel cannot answer. The answer is what the socket's local address stands
//! for or, after the detour, what is kept in the socket.
//!
//! The program runs after the kernel's own handler, for every getsockopt of the pod: the first lines are the
//! ones that matter for everybody else.

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use redirect_common::{
    Endpoint, Event, Family, HandoffKey, Origin, Own, Peer, SlotKey, is_handoff_address, role,
};

use crate::ctx::{AF_INET, AF_INET6, SockaddrIn, SockaddrIn6, Sockopt};
use crate::maps;
use crate::stats::count;

/// `SO_ORIGINAL_DST` of `linux/netfilter_ipv4.h` and `IP6T_SO_ORIGINAL_DST` of
/// `linux/netfilter_ipv6/ip6_tables.h`.
const ORIGINAL_DST: i32 = 80;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;

/// Always: what the caller gets is what the context says.
const DONE: i32 = 1;

/// Answers SO_ORIGINAL_DST.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn original_dst(ctx: SockoptContext) -> i32 {
    let call = Sockopt::new(&ctx);
    let family = match call.option() {
        (SOL_IP, ORIGINAL_DST) => Family::V4,
        (SOL_IPV6, ORIGINAL_DST) => Family::V6,
        _ => return untouched(&call),
    };
    // The level must fit the destination: an IPv4 connection on a dual-stack socket is asked about at SOL_IP.
    match destination(&call) {
        Some(dst) if dst.ip.family() == family => answer(&call, &dst),
        _ => return untouched(&call),
    }
    DONE
}

/// What a connection accepted by the sidecar was meant for.
#[inline(always)]
fn destination(call: &Sockopt) -> Option<Endpoint> {
    let cookie = call.cookie();
    let pod = maps::pod(cookie)?;
    let (own, peer) = call.ends()?;
    let Own(at) = own;
    let listener = pod.is_listener(at.port);
    if let Some(slot) = SlotKey::new(cookie, &at.ip) {
        // Other ports of the prefix are the application's own business.
        return if listener { maps::destination(&slot) } else { None };
    }
    if is_handoff_address(&at.ip) {
        return after_detour(call, cookie, own, peer, listener);
    }
    // `inbound` rewrites nothing: the socket's own address is the original destination. For connections that
    // were not redirected connection tracking would say the same.
    if !pod.is_proxy(&call.caller()) || !call.is_connection() || !maps::still(pod, cookie) {
        return None;
    }
    count(cookie, Event::InboundRedirected);
    // Where the kernel knows the connection, rules of somebody else may have given it the sidecar's port:
    // Istio's, left in a pod that runs. Its own answer stands. (Other rules of the pod's, one port to
    // another, were carried out before: the socket's own address is where the connection is to go on to.)
    if listener && call.is_answered() { None } else { Some(at) }
}

/// What is kept in the socket. With TCP Fast Open the client's side of the handshake comes after the
/// server's: then the destination is still in HANDOFF.
#[inline(always)]
fn after_detour(call: &Sockopt, cookie: u64, own: Own, peer: Peer, listener: bool) -> Option<Endpoint> {
    if let Some(origin) = call.origin()
        && origin.role == role::ACCEPTED
    {
        return Some(origin.dst);
    }
    let Some(dst) = maps::handoff_take(&HandoffKey::of_accepted(cookie, own, peer)) else {
        if listener {
            // Somebody in the pod dialled the sidecar's port itself.
            count(cookie, Event::HandoffMissing);
        }
        return None;
    };
    count(cookie, Event::HandoffTaken);
    // Without memory for it the next question is not answered.
    let _ = call.set_origin(Origin { dst, role: role::ACCEPTED });
    Some(dst)
}

/// The kernel's own answer stands.
#[inline(always)]
fn untouched(call: &Sockopt) -> i32 {
    call.leave_untouched();
    DONE
}

#[inline(always)]
fn answer(call: &Sockopt, dst: &Endpoint) {
    let port = (dst.port as u16).to_be();
    match dst.ip.family() {
        Family::V4 => {
            let address = SockaddrIn { family: AF_INET as u16, port, address: dst.ip.words[3], zero: 0 };
            put(call, address);
        }
        Family::V6 => {
            let (family, address) = (AF_INET6 as u16, dst.ip.words);
            put(call, SockaddrIn6 { family, port, flowinfo: 0, address, scope_id: 0 });
        }
    }
}

/// Answers with a value, or with the kernel's error for a buffer that is too small.
#[inline(always)]
fn put<T: Copy>(call: &Sockopt, value: T) {
    if call.len() < size_of::<T>() as i32 {
        call.fail_with_invalid();
    } else {
        call.answer(value);
    }
}
