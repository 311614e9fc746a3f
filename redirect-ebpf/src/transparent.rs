//! TPROXY mode: the proxy asks for a transparent socket, with which it could pretend to be its client. The
//! kernel gives that to a process with CAP_NET_ADMIN or CAP_NET_RAW only. So it is not asked: the socket is
//! noted as one with which the proxy may pretend, `bind` does the rest, and a capability changes nothing.
//!
//! IP_TRANSPARENT and IPV6_TRANSPARENT become IP_BIND_ADDRESS_NO_PORT, which has the same kind of value. With
//! it the kernel chooses the port at `connect()`: at `bind()` each connection would need one of 127.0.0.6 for
//! itself. A mark (SO_MARK) is answered and not set: no rule of the pod looks at one.
//!
//! An MPTCP socket is refused: its `bind()` is made on a socket inside it, which cannot be noted from here.
//!
//! The program runs before the kernel's own handler, for every setsockopt of the pod: the first lines are the
//! ones that matter for everybody else.

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use redirect_common::{Endpoint, Event, Origin, flags, role};

use crate::ctx::Sockopt;
use crate::maps;
use crate::stats::count;

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_IPV6: i32 = 41;
/// `linux/in.h`
const IP_TRANSPARENT: i32 = 19;
/// `linux/in.h`
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
/// `asm-generic/socket.h`
const SO_MARK: i32 = 36;
/// `linux/in6.h`
const IPV6_TRANSPARENT: i32 = 75;

/// `asm-generic/errno.h`
const EOPNOTSUPP: i32 = 95;

/// What a setsockopt hook returns: go on as the context says, or fail: with EPERM, if nothing else is said.
const PROCEED: i32 = 1;
const REFUSE: i32 = 0;

/// Answers what needs a privilege outside TPROXY mode.
#[cgroup_sockopt(setsockopt)]
pub(crate) fn transparent(ctx: SockoptContext) -> i32 {
    let call = Sockopt::new(&ctx);
    let marks = match call.option() {
        (SOL_IP, IP_TRANSPARENT) | (SOL_IPV6, IPV6_TRANSPARENT) => false,
        (SOL_SOCKET, SO_MARK) => true,
        _ => return untouched(&call),
    };
    let cookie = call.cookie();
    let Some(pod) = maps::pod(cookie) else { return untouched(&call) };
    let ours = pod.flags & flags::TPROXY != 0 && pod.is_proxy(&call.caller()) && call.is_tcp();
    if !ours || !maps::still(pod, cookie) {
        return untouched(&call);
    }
    if marks {
        // The kernel looks at the length before it asks for a privilege.
        if call.len() < size_of::<i32>() as i32 {
            return untouched(&call);
        }
        call.answer_by_itself();
        return PROCEED;
    }
    // 0 needs no privilege, and a value that is no number is the kernel's to refuse.
    if !call.is_switched_on() {
        if let Some(origin) = call.origin()
            && origin.role == role::TRANSPARENT
        {
            origin.role = role::NONE;
        }
        return untouched(&call);
    }
    if call.is_mptcp() {
        call.fail_with(EOPNOTSUPP);
        return REFUSE;
    }
    if may_be_noted(&call) && !call.set_origin(Origin { dst: Endpoint::NONE, role: role::TRANSPARENT }) {
        count(cookie, Event::NoStorage);
        return REFUSE;
    }
    call.become_option(SOL_IP, IP_BIND_ADDRESS_NO_PORT);
    untouched(&call)
}

/// Whether the socket can still be bound and connected. What is kept in another one stays there: the client,
/// or the original destination of an accepted connection. The option says nothing new about those.
#[inline(always)]
fn may_be_noted(call: &Sockopt) -> bool {
    let role = call.origin().map_or(role::NONE, |origin| origin.role);
    call.is_closed() && role != role::PRETENDER && role != role::FOREIGN
}

/// The caller's value goes to the kernel as it is.
#[inline(always)]
fn untouched(call: &Sockopt) -> i32 {
    call.leave_untouched();
    PROCEED
}
