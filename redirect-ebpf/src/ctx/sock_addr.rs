//! The context of connect, getpeername, sendmsg and recvmsg.

use core::ptr::write_volatile;

use aya_ebpf::bindings::{BPF_TCP_CLOSE, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_lookup_tcp, bpf_sk_release,
};
use aya_ebpf::programs::SockAddrContext;
use redirect_common::{Caller, Endpoint, Family, Ip, Origin, Protocol, role};

use super::{AF_INET, AF_INET6, MPTCP, SockaddrIn, SockaddrIn6, TCP, UDP, is_foreign, origin};

/// The context of connect4/6, getpeername4/6, sendmsg4/6 and recvmsg4/6.
pub(crate) struct SockAddr {
    ctx: *mut bpf_sock_addr,
}

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self { ctx: ctx.sock_addr }
    }

    /// From the context itself, inside a function with global linkage.
    #[inline(always)]
    pub(crate) fn of(ctx: *mut bpf_sock_addr) -> Self {
        Self { ctx }
    }

    /// The context itself, to be handed to such a function.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut bpf_sock_addr {
        self.ctx
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
        super::caller()
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

    /// Where the socket's connection was meant to go, if it is kept in the socket.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Option<&'static mut Origin> {
        origin(self.sk().cast(), None)
    }

    /// What the socket is, see [`role`].
    #[inline(always)]
    pub(crate) fn role(&self) -> u32 {
        self.origin().map_or(role::NONE, |origin| origin.role)
    }

    /// Keeps in the socket where its connection was meant to go; false when the kernel has no memory for it,
    /// or when the socket is another user's on one of the proxy's ports: that mark stays as long as it does.
    #[inline(always)]
    pub(crate) fn set_origin(&self, mut value: Origin) -> bool {
        let Some(kept) = origin(self.sk().cast(), Some(&mut value)) else { return false };
        let free = kept.role != role::FOREIGN;
        if free {
            *kept = value;
        }
        free
    }

    /// The port that the socket is bound to, host byte order; 0 when it is not.
    #[inline(always)]
    pub(crate) fn own_port(&self) -> u32 {
        let sk = self.sk();
        if sk.is_null() { 0 } else { field!(sk, src_port) }
    }

    /// Whether `bind()` can succeed: the socket has no port and no connection (`__inet_bind()`).
    #[inline(always)]
    pub(crate) fn is_unbound(&self) -> bool {
        let sk = self.sk();
        !sk.is_null() && field!(sk, src_port) == 0 && field!(sk, state) == BPF_TCP_CLOSE
    }

    /// In sendmsg4: the datagram's source, as IP_PKTINFO or `bind()` says it; unspecified when the kernel is
    /// to choose.
    #[inline(always)]
    pub(crate) fn source4(&self) -> Ip {
        Ip::v4_word(field!(self.ctx, msg_src_ip4))
    }

    /// In sendmsg6: the same.
    #[inline(always)]
    pub(crate) fn source6(&self) -> Ip {
        words!(self.ctx, msg_src_ip6)
    }

    /// In sendmsg4: chooses the datagram's source.
    #[inline(always)]
    pub(crate) fn set_source4(&self, ip: &Ip) {
        set_field!(self.ctx, msg_src_ip4, ip.words[3]);
    }

    /// In sendmsg6: the same.
    #[inline(always)]
    pub(crate) fn set_source6(&self, ip: &Ip) {
        // SAFETY: as in `set_field!`; four words, one store each.
        unsafe {
            write_volatile(&raw mut (*self.ctx).msg_src_ip6[0], ip.words[0]);
            write_volatile(&raw mut (*self.ctx).msg_src_ip6[1], ip.words[1]);
            write_volatile(&raw mut (*self.ctx).msg_src_ip6[2], ip.words[2]);
            write_volatile(&raw mut (*self.ctx).msg_src_ip6[3], ip.words[3]);
        }
    }

    /// In bind4 and bind6: lets other sockets of the same user have the same port (SO_REUSEPORT).
    #[inline(always)]
    pub(crate) fn share_port(&self) -> bool {
        const SOL_SOCKET: i32 = 1;
        const SO_REUSEPORT: i32 = 15;
        let mut on: i32 = 1;
        // SAFETY: the helper reads four bytes of `on`; allowed in bind hooks since Linux 5.12.
        unsafe {
            bpf_setsockopt(
                self.ctx.cast(),
                SOL_SOCKET,
                SO_REUSEPORT,
                (&raw mut on).cast(),
                size_of::<i32>() as i32,
            ) == 0
        }
    }

    /// Binds the socket to an address of the pod and any port. It fails where the socket has a port already.
    #[inline(always)]
    pub(crate) fn bind(&self, ip: &Ip) {
        if ip.is_v4() {
            let address = SockaddrIn { family: AF_INET as u16, port: 0, address: ip.words[3], zero: 0 };
            // SAFETY: the helper reads one sockaddr of the given length; allowed in connect hooks since Linux
            // 4.17.
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

    /// Makes a refusing hook's call fail with this error.
    #[inline(always)]
    pub(crate) fn fail_with(&self, errno: i32) {
        super::fail_with(errno);
    }

    /// In a bind hook: allows the address to be used while sockets that do not listen have it (SO_REUSEADDR).
    #[inline(always)]
    pub(crate) fn reuse_address(&self) {
        const SOL_SOCKET: i32 = 1;
        const SO_REUSEADDR: i32 = 2;
        let mut on = 1_i32;
        // SAFETY: the option's value is 4 bytes that live across the call; allowed in bind hooks since Linux
        // 5.12, and this option since 6.1 and before.
        let _ = unsafe {
            bpf_setsockopt(
                self.ctx.cast(),
                SOL_SOCKET,
                SO_REUSEADDR,
                (&raw mut on).cast(),
                size_of::<i32>() as i32,
            )
        };
    }

    /// The address of the sidecar's listener on a port, found by the kernel's own look-up; `None` when no
    /// socket listens there or it is not the proxy's.
    #[inline(always)]
    pub(crate) fn find_listener(&self, port: u32, family: Family) -> Option<Ip> {
        let sk = match family {
            Family::V4 => self.look_up(&Tuple4 {
                saddr: Ip::LOCALHOST4.words[3],
                daddr: Ip::LOCALHOST4.words[3],
                sport: 0,
                dport: (port as u16).to_be(),
            }),
            Family::V6 => self.look_up(&Tuple6 {
                saddr: Ip::LOCALHOST6.words,
                daddr: Ip::LOCALHOST6.words,
                sport: 0,
                dport: (port as u16).to_be(),
            }),
        };
        if sk.is_null() {
            return None;
        }
        let foreign = is_foreign(sk.cast());
        let ip = address!(sk, family, src_ip4, src_ip6);
        // SAFETY: the reference taken by the look-up.
        unsafe { bpf_sk_release(sk.cast()) };
        (!foreign).then_some(ip)
    }

    /// The socket that would take a packet from localhost, if any. (Its way leads through `inbound` too,
    /// which lets what comes from localhost pass.)
    #[inline(always)]
    fn look_up<T>(&self, tuple: &T) -> *mut bpf_sock {
        const CURRENT_NETNS: u64 = u64::MAX;
        // SAFETY: the tuple is one of the two shapes that the helper knows by their size; allowed since Linux
        // 4.20.
        unsafe {
            let tuple = core::ptr::from_ref(tuple).cast_mut().cast();
            bpf_sk_lookup_tcp(self.ctx.cast(), tuple, size_of::<T>() as u32, CURRENT_NETNS, 0)
        }
    }
}

/// `bpf_sock_tuple` for IPv4.
#[repr(C)]
struct Tuple4 {
    saddr: u32,
    daddr: u32,
    sport: u16,
    dport: u16,
}

/// `bpf_sock_tuple` for IPv6.
#[repr(C)]
struct Tuple6 {
    saddr: [u32; 4],
    daddr: [u32; 4],
    sport: u16,
    dport: u16,
}
