//! The sidecar asks its accepted socket for SO_ORIGINAL_DST (step 3 of a connection, see `connect`), which
//! without connection tracking the kernel cannot answer. The answer is what the socket's local address stands
//! for or, after the detour, what is kept in the socket.
//!
//! The program runs after the kernel's own handler, for every getsockopt of the pod: the first lines are the
//! ones that matter for everybody else.

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use redirect_common::{Endpoint, Event, Family, HandoffKey, Origin, Own, SlotKey, is_handoff_address, role};

use crate::ctx::{AF_INET, AF_INET6, SockaddrIn, SockaddrIn6, Sockopt};
use crate::maps;
use crate::stats::count;

/// `SO_ORIGINAL_DST` of `linux/netfilter_ipv4.h` and `IP6T_SO_ORIGINAL_DST` of
/// `linux/netfilter_ipv6/ip6_tables.h`.
const ORIGINAL_DST: i32 = 80;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// Of a larger buffer the program sees only this much.
const PAGE_SIZE: i32 = 4096;

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
    let (own, peer) = call.ends()?;
    let Own(at) = own;
    if let Some(slot) = SlotKey::new(call.cookie(), &at.ip) {
        return maps::destination(&slot).copied();
    }
    if let Some(origin) = call.origin()
        && origin.role == role::ACCEPTED
    {
        return Some(origin.dst);
    }
    if !is_handoff_address(&at.ip) {
        return None;
    }
    // With TCP Fast Open the client's side of the handshake comes after the server's: look again now.
    let dst = maps::handoff_take(&HandoffKey::of_sidecar(call.cookie(), own, peer))?;
    call.set_origin(Origin { dst, role: role::ACCEPTED });
    Some(dst)
}

#[inline(always)]
fn answer(call: &Sockopt, dst: &Endpoint) {
    match dst.ip.family() {
        Family::V4 => answer4(call, dst),
        Family::V6 => answer6(call, dst),
    }
}

#[inline(always)]
fn untouched(call: &Sockopt) -> i32 {
    if call.len() > PAGE_SIZE {
        call.leave_untouched();
    }
    DONE
}

#[inline(always)]
fn answer4(call: &Sockopt, dst: &Endpoint) {
    if call.len() < size_of::<SockaddrIn>() as i32 {
        return call.fail_with_invalid();
    }
    count(call.cookie(), Event::OriginalDstAnswered);
    call.answer(SockaddrIn {
        family: AF_INET as u16,
        port: (dst.port as u16).to_be(),
        address: dst.ip.words[3],
        zero: 0,
    });
}

#[inline(always)]
fn answer6(call: &Sockopt, dst: &Endpoint) {
    if call.len() < size_of::<SockaddrIn6>() as i32 {
        return call.fail_with_invalid();
    }
    count(call.cookie(), Event::OriginalDstAnswered);
    call.answer(SockaddrIn6 {
        family: AF_INET6 as u16,
        port: (dst.port as u16).to_be(),
        flowinfo: 0,
        address: dst.ip.words,
        scope_id: 0,
    });
}
