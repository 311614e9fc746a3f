//! An application calls `connect()`: step 1 of its way to the sidecar. Decide, and rewrite to the sidecar at
//! an address that stands for the true destination.
//!
//! * Step 2 is the kernel's own: it routes to that address by the local route that attach added
//!   (`redirect_user::pod::netns`), whose preferred source is the pod's address. It finds the listener, too,
//!   as that listens on all addresses; for one that does not, the address is one that `inbound` steers.
//! * Step 3 is `original_dst`: the sidecar asks its accepted socket, whose local address is the one that
//!   stands for the destination.
//!
//! **The detour** is for a connection without such an address. There are five cases: all slots of the
//! destination are taken; the table of destinations is full; the sidecar listened on localhost before the pod
//! was attached; the application dialled localhost itself; the pod has no address of the family, and the
//! socket is bound or the destination is link-local or the pod's own. Then the destination is kept in the
//! client's socket (ORIGIN), and `sock_ops` hands it over in the handshake.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{
    Endpoint, Event, Facts as _, Family, Ip, LISTENER_PLACES, ListenerKey, Origin, PodConfig, Protocol,
    STEERED, SlotKey, TRIES, Target, role, shared_address, slot_address, slot_of,
};

use crate::call::{Call, Decision, ECONNREFUSED, ENETUNREACH, PROCEED, REFUSE, Request, decide_call};
use crate::ctx::{SockAddr, listener_address};
use crate::dns::asked_at;
use crate::maps::{self, Claim};
use crate::stats::{count, count_event};
use crate::trace;

/// `connect()` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some((request, pod)) = Request::new(&sock, sock.address4(), sock.bound4()) else { return PROCEED };
    connect(&sock, &request, pod, |to| sock.set_address4(to))
}

/// `connect()` on an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr::new(&ctx);
    let Some((request, pod)) = Request::new(&sock, sock.address6(), sock.bound6()) else { return PROCEED };
    connect(&sock, &request, pod, |to| sock.set_address6(to))
}

/// What becomes of the call.
enum Step {
    Leave,
    /// To the address that was put into `to`.
    Rewrite,
    /// With this error.
    Refuse(i32),
}

/// The way of both hooks. Its two halves are functions with global linkage, which the verifier walks once
/// each: behind all branches of `decide()` together it would walk the rest some fifty times.
#[inline(always)]
fn connect(sock: &SockAddr, request: &Request, pod: &'static PodConfig, rewrite: impl Fn(&Endpoint)) -> i32 {
    let decision = decide_call(request, pod);
    let mut to = Endpoint::NONE;
    let outcome = Outcome(connect_call(sock.context(), request, pod, decision, &mut to));
    let code = if !maps::still(pod, request.cookie) {
        count(request.cookie, Event::ConfigChanged);
        sock.fail_with(ECONNREFUSED);
        REFUSE
    } else if outcome.errno() != 0 {
        sock.fail_with(outcome.errno());
        REFUSE
    } else {
        if outcome.rewritten() {
            rewrite(&to);
        }
        PROCEED
    };
    trace::trace_call(request, decision);
    code
}

/// What [`connect_call`] returns: an error in the low 32 bits, above it whether the address is to be
/// rewritten.
struct Outcome(u64);

impl Outcome {
    #[inline(always)]
    fn errno(&self) -> i32 {
        self.0 as u32 as i32
    }

    #[inline(always)]
    fn rewritten(&self) -> bool {
        self.0 >> 32 != 0
    }
}

/// Carries a decision out, all but the rewriting of the address, which goes to `to`. No pointer is ever null;
/// the verifier wants to be told.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connect_call(
    ctx: *mut bpf_sock_addr,
    request: *const Request,
    pod: *const PodConfig,
    decision: u64,
    to: *mut Endpoint,
) -> u64 {
    // SAFETY: the caller passes references, and those outlive the call; `pod` is a value of a map.
    let (Some(request), Some(pod), Some(to)) =
        (unsafe { request.as_ref() }, unsafe { pod.as_ref() }, unsafe { to.as_mut() })
    else {
        return ECONNREFUSED as u64;
    };
    let sock = SockAddr::of(ctx);
    let call = Call::new(request, pod);
    let decision = Decision(decision);
    let (step, event) = match decision.target() {
        Some(target) => redirect(&sock, &call, target, to),
        None => leave_alone(&sock, &call, decision),
    };
    let outcome = match step {
        Step::Leave => 0,
        Step::Rewrite => 1 << 32,
        Step::Refuse(errno) => errno as u64,
    };
    count_event(call.facts.cookie, event);
    outcome
}

/// The guard sees the packet, not the caller, and its address perhaps after a service load balancer has
/// chosen another: what it could not decide again by itself is marked. No memory for the mark: the guard
/// refuses the connection.
///
/// Who the proxy pretends to be is not overwritten: from 127.0.0.6 nothing leaves the pod. It is handed over
/// when the application takes the connection; where too many wait for that there is no room for one more.
#[inline(always)]
fn leave_alone(sock: &SockAddr, call: &Call<'_>, decision: Decision) -> (Step, u64) {
    let cookie = call.facts.cookie;
    if sock.role() == role::PRETENDER {
        if !maps::has_room_for_client(cookie) {
            return (Step::Refuse(ECONNREFUSED), Event::ClientRefused as u64);
        }
    } else if !decision.marked() {
        forget_origin(sock);
    } else if !sock.set_origin(Origin { dst: call.flow.dst, role: role::PASSED }) {
        count(cookie, Event::NoStorage);
    }
    (Step::Leave, decision.event())
}

/// A second connect() on this socket may follow a redirected one: "no origin" means "not redirected". What
/// `bind` and `transparent` have noted stays: the socket may be going to listen, or to pretend.
#[inline(always)]
fn forget_origin(sock: &SockAddr) {
    if let Some(origin) = sock.origin()
        && origin.role != role::FOREIGN
        && !role::is_transparent(origin.role)
    {
        origin.role = role::NONE;
    }
}

#[inline(always)]
fn redirect(sock: &SockAddr, call: &Call<'_>, target: Target, to: &mut Endpoint) -> (Step, u64) {
    let pod = call.facts.pod;
    if call.unreachable() {
        return (Step::Refuse(ENETUNREACH), Event::Unreachable as u64);
    }
    match target {
        Target::Outbound => to_listener(sock, call, pod.outbound_port, Event::OutboundRedirected, to),
        Target::Inbound => to_listener(sock, call, pod.inbound_port, Event::SelfCallRedirected, to),
        Target::Dns => match call.flow.protocol {
            Protocol::Tcp => to_listener(sock, call, pod.dns_port, Event::DnsRedirected, to),
            Protocol::Udp => match asked_at(call) {
                Some(proxy) => {
                    *to = proxy;
                    (Step::Rewrite, Event::DnsRedirected as u64)
                }
                None => (Step::Refuse(ECONNREFUSED), Event::DnsRefused as u64),
            },
        },
    }
}

/// Dials one of the sidecar's listeners in the pod's private prefix, which keeps the pod's address as the
/// client's, and at an address that stands for the destination, if there is a slot for it. (`inbound` gives
/// the connection to a listener on localhost.) A destination on localhost has localhost for its client, so
/// there the very address of the listener is dialled; so is a listener on localhost that only the kernel
/// knows.
#[inline(always)]
fn to_listener(sock: &SockAddr, call: &Call<'_>, port: u32, event: Event, to: &mut Endpoint) -> (Step, u64) {
    let (cookie, dst) = (call.facts.cookie, &call.flow.dst);
    let family = call.flow.family;
    let source = call.facts.pod.source(family);
    // The answers go straight to their place: Linux 6.1 counts each function's stack in steps of 32 bytes,
    // and 512 are all.
    to.port = port;
    let found = listener_call(sock.context(), cookie, port.into(), family.number().into(), &mut to.ip);
    if found == 0 {
        return (Step::Refuse(ECONNREFUSED), Event::NoListener as u64);
    }
    let wildcard = to.ip.is_unspecified();
    let anywhere = found == REGISTERED || wildcard;
    if !anywhere || source.is_unspecified() || dst.ip.is_loopback_of(family) {
        if wildcard {
            to.ip = family.localhost();
        }
        if !anywhere {
            bind_anyhow(sock, call, &source);
        }
        return by_detour(sock, call, role::CLIENT, event);
    }
    bind_source(sock, call);
    let half = if wildcard { 0 } else { STEERED };
    if claim_call(call.request, half.into(), &mut to.ip) == 0 {
        to.ip = shared_address(dst, family);
        return by_detour(sock, call, role::CLIENT, event);
    }
    forget_origin(sock);
    (Step::Rewrite, event as u64)
}

/// Has the address of a slot in one half of the prefix stand for the destination and puts it into `ip`; 0
/// when there is no slot for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_call(request: *const Request, half: u64, ip: *mut Ip) -> u64 {
    // SAFETY: the caller passes references.
    let (Some(request), Some(ip)) = (unsafe { request.as_ref() }, unsafe { ip.as_mut() }) else { return 0 };
    let (cookie, dst, family) = (request.cookie, &request.flow.dst, request.flow.family);
    for attempt in 0..TRIES {
        let slot = slot_of(dst, attempt) | half as u32;
        match maps::claim_slot(&SlotKey { cookie, slot, family: family.number() }, dst) {
            Claim::Done => {
                *ip = slot_address(slot, family);
                return 1;
            }
            Claim::Taken => {}
            Claim::Full => return 0,
        }
    }
    0
}

/// Rewrites and keeps the true destination in the socket. (Of an MPTCP socket the hook sees the
/// first subflow, which is what meets the sidecar.)
#[inline(always)]
fn by_detour(sock: &SockAddr, call: &Call<'_>, role: u32, event: Event) -> (Step, u64) {
    if !sock.set_origin(Origin { dst: call.flow.dst, role }) {
        return (Step::Refuse(ECONNREFUSED), Event::NoStorage as u64);
    }
    (Step::Rewrite, event as u64)
}

/// Gives the client the address that it would have had without us, where the local route's preferred source
/// is another: it dials a second address of its own pod.
#[inline(always)]
fn bind_source(sock: &SockAddr, call: &Call<'_>) {
    let dst = &call.flow.dst.ip;
    if call.has_own_source() && !dst.same(&call.facts.pod.source(call.flow.family)) {
        sock.bind(dst);
    }
}

/// On the way to localhost the kernel would choose localhost: gives the client the pod's address, or the very
/// one that it dials. A socket that has a port already keeps what it has; then `peername` tells the sidecar
/// the right address.
#[inline(always)]
fn bind_anyhow(sock: &SockAddr, call: &Call<'_>, source: &Ip) {
    let dst = &call.flow.dst.ip;
    if call.flow.src.is_unspecified() && !dst.is_loopback_of(call.flow.family) {
        sock.bind(if call.facts.own_address(dst) { dst } else { source });
    }
}

/// What [`listener_call`] returns for a listener that sock_ops has registered, which `inbound` can give
/// connections to.
const REGISTERED: u64 = 1;
/// For one that only the kernel knows.
const FOUND: u64 = 2;

/// Puts the address of the sidecar's listener into `ip`; 0 when there is none. The sockets that sock_ops has
/// learned are asked first, then the kernel: the sidecar may have listened before the pod was attached, an
/// IPv6 listener may serve IPv4 as well (or not, with IPV6_V6ONLY).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listener_call(
    ctx: *mut bpf_sock_addr,
    cookie: u64,
    port: u64,
    family: u64,
    ip: *mut Ip,
) -> u64 {
    // SAFETY: the caller passes a reference.
    let Some(ip) = (unsafe { ip.as_mut() }) else { return 0 };
    let (port, family) = (port as u32, if family == 4 { Family::V4 } else { Family::V6 });
    for place in 0..LISTENER_PLACES {
        if let Some(bound) = listener_address(&ListenerKey::new(cookie, port, family, place)) {
            *ip = bound;
            return REGISTERED;
        }
    }
    let Some(bound) = SockAddr::of(ctx).find_listener(port, family) else { return 0 };
    *ip = bound;
    FOUND
}
