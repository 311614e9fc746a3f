//! Typed views of the kernel's contexts: the only place where a program reads or writes one, and where `unsafe` lives.
//!
//! Verifier facts behind the shape of this file (seen on Linux 6.18): every context field is read once, by a volatile
//! read of its own, because LLVM otherwise merges neighbouring fields into one wider access or computes a pointer
//! into the context, and the verifier refuses both.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sk_lookup, bpf_sock,
    bpf_sock_addr, bpf_sock_ops, bpf_sockopt,
};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_set_retval,
    bpf_sk_assign, bpf_sk_release, bpf_sk_storage_get, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext};
use redirect_common::{Caller, DnsPending, Endpoint, Ip, ListenerKey, Origin, Protocol};

use crate::maps;

/// `struct sockaddr_in`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockaddrIn {
    pub(crate) family: u16,
    pub(crate) port: u16,
    pub(crate) address: u32,
    pub(crate) zero: u64,
}

/// `struct sockaddr_in6`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockaddrIn6 {
    pub(crate) family: u16,
    pub(crate) port: u16,
    pub(crate) flowinfo: u32,
    pub(crate) address: [u32; 4],
    pub(crate) scope_id: u32,
}

/// `IPPROTO_TCP`, `IPPROTO_UDP` and `IPPROTO_MPTCP` of `linux/in.h`.
const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;
/// `AF_INET` and `AF_INET6` of `linux/socket.h`.
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
/// The index of `lo`, the first interface of every network namespace (`loopback_net_init()`).
const LOOPBACK_IFINDEX: u32 = 1;

macro_rules! field {
    ($ptr:expr, $($path:tt)+) => {
        // SAFETY: the kernel hands every program a valid context, and the verifier checks offset and width.
        unsafe { read_volatile(&raw const (*$ptr).$($path)+) }
    };
}

macro_rules! set_field {
    ($ptr:expr, $field:ident, $value:expr) => {
        // SAFETY: as for reading; the verifier also checks that this program type may write the field.
        unsafe { write_volatile(&raw mut (*$ptr).$field, $value) }
    };
}

/// Four consecutive words of a context, one access each.
macro_rules! words {
    ($ptr:expr, $field:ident) => {
        Ip {
            words: [
                field!($ptr, $field[0]),
                field!($ptr, $field[1]),
                field!($ptr, $field[2]),
                field!($ptr, $field[3]),
            ],
        }
    };
}

/// The address of either family. Both are read before the choice: LLVM merges the tails of two branches that read
/// different fields into one access at a computed offset, which the verifier refuses.
macro_rules! address {
    ($ptr:expr, $family:ident, $v4:ident, $v6:ident) => {{
        let (v4, v6) = (field!($ptr, $v4), words!($ptr, $v6));
        if field!($ptr, $family) == AF_INET { Ip::v4_word(v4) } else { v6 }
    }};
}

/// A socket's record, made when there is none and `initial` says so. `None`: there is none, or no memory for one.
///
/// The record belongs to one socket, and the hooks that write it run under that socket's lock.
#[inline(always)]
fn record(sk: *mut c_void, initial: Option<&mut Origin>) -> Option<&'static mut Origin> {
    if sk.is_null() {
        return None;
    }
    let (value, flags) = match initial {
        Some(value) => (core::ptr::from_mut(value).cast(), u64::from(BPF_SK_STORAGE_GET_F_CREATE)),
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: the map is a socket storage map of Origin and sk is a socket pointer of the context.
    unsafe { bpf_sk_storage_get(maps::origin(), sk, value, flags).cast::<Origin>().as_mut() }
}

/// The context of connect4/6, getpeername4/6, sendmsg4/6 and recvmsg4/6.
pub(crate) struct SockAddr {
    ctx: *mut bpf_sock_addr,
}

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self { ctx: ctx.sock_addr }
    }

    /// Which pod: the cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: allowed in sock_addr programs since Linux 5.7.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    /// TCP or UDP; `None` for what is never captured.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Option<Protocol> {
        match field!(self.ctx, protocol) {
            TCP | MPTCP => Some(Protocol::Tcp),
            UDP => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// Who calls, as the initial user namespace sees it.
    #[inline(always)]
    pub(crate) fn caller(&self) -> Caller {
        // SAFETY: the helper has no argument; these hooks run in the caller's context.
        let ids = unsafe { bpf_get_current_uid_gid() };
        Caller { uid: ids as u32, gid: (ids >> 32) as u32 }
    }

    /// The address in the context of an IPv4 hook.
    #[inline(always)]
    pub(crate) fn address4(&self) -> Endpoint {
        Endpoint { ip: Ip::v4_word(field!(self.ctx, user_ip4)), port: self.port() }
    }

    /// The address in the context of an IPv6 hook (IPv4-mapped for an IPv4 flow on a dual-stack socket).
    #[inline(always)]
    pub(crate) fn address6(&self) -> Endpoint {
        Endpoint { ip: words!(self.ctx, user_ip6), port: self.port() }
    }

    #[inline(always)]
    fn port(&self) -> u32 {
        u32::from(u16::from_be(field!(self.ctx, user_port) as u16))
    }

    /// Rewrites the address in the context of an IPv4 hook.
    #[inline(always)]
    pub(crate) fn set_address4(&self, to: &Endpoint) {
        set_field!(self.ctx, user_ip4, to.ip.words[3]);
        self.set_port(to.port);
    }

    /// Rewrites the address in the context of an IPv6 hook.
    #[inline(always)]
    pub(crate) fn set_address6(&self, to: &Endpoint) {
        // SAFETY: as in `set_field!`; four words, one store each.
        unsafe {
            write_volatile(&raw mut (*self.ctx).user_ip6[0], to.ip.words[0]);
            write_volatile(&raw mut (*self.ctx).user_ip6[1], to.ip.words[1]);
            write_volatile(&raw mut (*self.ctx).user_ip6[2], to.ip.words[2]);
            write_volatile(&raw mut (*self.ctx).user_ip6[3], to.ip.words[3]);
        }
        self.set_port(to.port);
    }

    #[inline(always)]
    fn set_port(&self, port: u32) {
        set_field!(self.ctx, user_port, u32::from((port as u16).to_be()));
    }

    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        field!(self.ctx, __bindgen_anon_1.sk)
    }

    /// The IPv4 address that the socket is bound to; 0.0.0.0 when it is not.
    #[inline(always)]
    pub(crate) fn bound4(&self) -> Ip {
        let sk = self.sk();
        if sk.is_null() { Ip::NONE } else { Ip::v4_word(field!(sk, src_ip4)) }
    }

    /// The IPv6 address that the socket is bound to; `::` when it is not.
    #[inline(always)]
    pub(crate) fn bound6(&self) -> Ip {
        let sk = self.sk();
        if sk.is_null() { Ip::NONE } else { words!(sk, src_ip6) }
    }

    /// The socket's record, if it has one.
    #[inline(always)]
    pub(crate) fn record(&self) -> Option<&'static mut Origin> {
        record(self.sk().cast(), None)
    }

    /// Writes the socket's record; false when the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn set_record(&self, mut origin: Origin) -> bool {
        let Some(record) = record(self.sk().cast(), Some(&mut origin)) else { return false };
        *record = origin;
        true
    }

    /// The questions noted for a UDP socket, if any.
    #[inline(always)]
    pub(crate) fn dns_pending(&self) -> Option<&'static mut DnsPending> {
        // SAFETY: the map is a socket storage map of DnsPending and sk is the context's socket.
        unsafe {
            bpf_sk_storage_get(maps::dns_pending(), self.sk().cast(), core::ptr::null_mut(), 0)
                .cast::<DnsPending>()
                .as_mut()
        }
    }

    /// As [`Self::dns_pending`], made when there is none; `None` when the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn make_dns_pending(&self) -> Option<&'static mut DnsPending> {
        // SAFETY: as above; a new entry is all zero, which is `DnsPending::NONE`.
        unsafe {
            let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
            bpf_sk_storage_get(maps::dns_pending(), self.sk().cast(), core::ptr::null_mut(), flags)
                .cast::<DnsPending>()
                .as_mut()
        }
    }

    /// Binds the socket to an address of the pod and any port; a failure (the socket has a port already) is harmless.
    #[inline(always)]
    pub(crate) fn bind(&self, ip: &Ip) {
        if ip.is_v4() {
            let address = SockaddrIn { family: AF_INET as u16, port: 0, address: ip.words[3], zero: 0 };
            // SAFETY: the helper reads one sockaddr of the given length; allowed in connect hooks since Linux 4.17.
            unsafe {
                bpf_bind(self.ctx, (&raw const address).cast_mut().cast(), size_of::<SockaddrIn>() as i32)
            };
        } else {
            let address =
                SockaddrIn6 { family: AF_INET6 as u16, port: 0, flowinfo: 0, address: ip.words, scope_id: 0 };
            // SAFETY: as above.
            unsafe {
                bpf_bind(self.ctx, (&raw const address).cast_mut().cast(), size_of::<SockaddrIn6>() as i32)
            };
        }
    }

    /// Makes a refusing hook's `connect()` fail with ECONNREFUSED, as if the sidecar had refused.
    #[inline(always)]
    pub(crate) fn fail_with_refused(&self) {
        const ECONNREFUSED: i32 = 111;
        // SAFETY: allowed in these programs since Linux 5.18.
        let _ = unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
}

/// The address that a registered listener is bound to; `None` when the slot is empty.
#[inline(always)]
pub(crate) fn listener_address(key: &ListenerKey) -> Option<Ip> {
    // SAFETY: a sockhash look-up returns a referenced socket or null; it is released below on the one path.
    let sk: *mut bpf_sock =
        unsafe { bpf_map_lookup_elem(maps::listeners_ptr(), core::ptr::from_ref(key).cast()) }.cast();
    if sk.is_null() {
        return None;
    }
    let ip = address!(sk, family, src_ip4, src_ip6);
    // SAFETY: the reference taken by the look-up above.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(ip)
}

/// The context of sock_ops.
pub(crate) struct SockOps {
    ctx: *mut bpf_sock_ops,
}

impl SockOps {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockOpsContext) -> Self {
        Self { ctx: ctx.ops }
    }

    /// Which callback, `BPF_SOCK_OPS_*`.
    #[inline(always)]
    pub(crate) fn op(&self) -> u32 {
        field!(self.ctx, op)
    }

    /// Which pod: the cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: allowed in sock_ops programs since Linux 5.15.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    /// Whether the socket is an IPv4 socket.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        field!(self.ctx, family) == AF_INET
    }

    /// The socket's own address. `local_port` is in host byte order.
    #[inline(always)]
    pub(crate) fn local(&self) -> Endpoint {
        let ip = address!(self.ctx, family, local_ip4, local_ip6);
        Endpoint { ip, port: field!(self.ctx, local_port) }
    }

    /// The peer's address. `remote_port` holds the port in network byte order in the upper half of the word.
    #[inline(always)]
    pub(crate) fn remote(&self) -> Endpoint {
        let ip = address!(self.ctx, family, remote_ip4, remote_ip6);
        Endpoint { ip, port: u32::from_be(field!(self.ctx, remote_port)) & 0xffff }
    }

    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        field!(self.ctx, __bindgen_anon_2.sk)
    }

    /// The socket's record, if it has one.
    #[inline(always)]
    pub(crate) fn record(&self) -> Option<&'static mut Origin> {
        record(self.sk().cast(), None)
    }

    /// Writes the socket's record; false when the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn set_record(&self, mut origin: Origin) -> bool {
        let Some(record) = record(self.sk().cast(), Some(&mut origin)) else { return false };
        *record = origin;
        true
    }

    /// Asks for `BPF_SOCK_OPS_STATE_CB` on this socket.
    #[inline(always)]
    pub(crate) fn watch_state(&self) {
        let flags = field!(self.ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context is valid; the call fails only for sockets that are not full, which have no callbacks.
        let _ = unsafe { bpf_sock_ops_cb_flags_set(self.ctx, flags as i32) };
    }

    /// In `BPF_SOCK_OPS_STATE_CB`, the state that the socket enters.
    #[inline(always)]
    pub(crate) fn new_state(&self) -> u32 {
        field!(self.ctx, __bindgen_anon_1.args[1])
    }

    /// Puts the listening socket into a slot; false when the slot is taken or the kernel refuses the socket.
    #[inline(always)]
    pub(crate) fn register(&self, mut key: ListenerKey) -> bool {
        // SAFETY: the context is valid, and the kernel locks the socket around TCP_LISTEN_CB.
        maps::listeners().update(&mut key, unsafe { &mut *self.ctx }, BPF_NOEXIST.into()).is_ok()
    }
}

/// The context of getsockopt.
pub(crate) struct Sockopt {
    ctx: *mut bpf_sockopt,
}

impl Sockopt {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockoptContext) -> Self {
        Self { ctx: ctx.sockopt }
    }

    /// Option level and name.
    #[inline(always)]
    pub(crate) fn option(&self) -> (i32, i32) {
        (field!(self.ctx, level), field!(self.ctx, optname))
    }

    /// The length of the caller's buffer.
    #[inline(always)]
    pub(crate) fn len(&self) -> i32 {
        field!(self.ctx, optlen)
    }

    /// Tells the kernel that the program did not look at the value. Needed when the buffer is larger than a page, of
    /// which the program sees the first page only; the kernel's answer would otherwise be cut off.
    #[inline(always)]
    pub(crate) fn leave_untouched(&self) {
        set_field!(self.ctx, optlen, 0);
    }

    /// Which pod: the cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: allowed in sockopt programs since Linux 5.15.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    /// The socket's record, if it has one.
    #[inline(always)]
    pub(crate) fn record(&self) -> Option<&'static mut Origin> {
        record(field!(self.ctx, __bindgen_anon_1.sk).cast(), None)
    }

    /// The connection's two ends, client and own, as [`SockOps`] saw them in the handshake.
    #[inline(always)]
    pub(crate) fn ends(&self) -> Option<(Endpoint, Endpoint)> {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        if sk.is_null() {
            return None;
        }
        let peer = address!(sk, family, dst_ip4, dst_ip6);
        let own = address!(sk, family, src_ip4, src_ip6);
        let peer_port = u32::from(u16::from_be(field!(sk, dst_port)));
        Some((Endpoint { ip: peer, port: peer_port }, Endpoint { ip: own, port: field!(sk, src_port) }))
    }

    /// Answers with a value and success; the caller has checked that the buffer holds them.
    #[inline(always)]
    pub(crate) fn answer<T: Copy>(&self, value: T) {
        let start = field!(self.ctx, __bindgen_anon_2.optval).cast::<T>();
        let end = field!(self.ctx, __bindgen_anon_3.optval_end).cast::<T>();
        if start.wrapping_add(1) > end {
            return;
        }
        // SAFETY: bounds checked above, and T is plain integers.
        unsafe { start.write_unaligned(value) };
        set_field!(self.ctx, optlen, size_of::<T>() as i32);
        set_field!(self.ctx, retval, 0);
    }

    /// Makes the call fail with EINVAL, the kernel's answer to a buffer that is too small.
    #[inline(always)]
    pub(crate) fn fail_with_invalid(&self) {
        const EINVAL: i32 = 22;
        // SAFETY: allowed in these programs since Linux 5.18.
        let _ = unsafe { bpf_set_retval(-EINVAL) };
    }
}

/// The context of sk_lookup.
pub(crate) struct Lookup {
    ctx: *mut bpf_sk_lookup,
}

impl Lookup {
    #[inline(always)]
    pub(crate) fn new(ctx: &SkLookupContext) -> Self {
        Self { ctx: ctx.lookup }
    }

    /// Whether the packet is TCP.
    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        field!(self.ctx, protocol) == TCP
    }

    /// Whether the packet came over `lo` to an address that belongs to `lo` (field since Linux 5.17).
    #[inline(always)]
    pub(crate) fn over_lo(&self) -> bool {
        self.interface() == LOOPBACK_IFINDEX
    }

    /// Index of the interface on which the packet arrived.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        field!(self.ctx, ingress_ifindex)
    }

    /// Whether the packet is IPv4.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        field!(self.ctx, family) == AF_INET
    }

    /// The destination. `local_port` is in host byte order.
    #[inline(always)]
    pub(crate) fn local(&self) -> Endpoint {
        let ip = address!(self.ctx, family, local_ip4, local_ip6);
        Endpoint { ip, port: field!(self.ctx, local_port) }
    }

    /// The source.
    #[inline(always)]
    pub(crate) fn remote(&self) -> Endpoint {
        let ip = address!(self.ctx, family, remote_ip4, remote_ip6);
        Endpoint { ip, port: u32::from(u16::from_be(field!(self.ctx, remote_port))) }
    }

    /// Gives the connection to the listener in a slot; false when the slot is empty or the listener cannot take it (an
    /// IPv6-only socket and an IPv4 packet).
    #[inline(always)]
    pub(crate) fn assign(&self, key: &ListenerKey) -> bool {
        // SAFETY: a sockhash look-up returns a referenced socket or null; it is released below.
        let sk = unsafe { bpf_map_lookup_elem(maps::listeners_ptr(), core::ptr::from_ref(key).cast()) };
        if sk.is_null() {
            return false;
        }
        // SAFETY: sk is the socket found above.
        let assigned = unsafe { bpf_sk_assign(self.ctx.cast(), sk, 0) } == 0;
        // SAFETY: the reference taken by the look-up above.
        unsafe { bpf_sk_release(sk) };
        assigned
    }
}
