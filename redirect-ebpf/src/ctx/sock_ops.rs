//! The context of sock_ops.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use redirect_common::{Endpoint, Family, ListenerKey, Origin, Own, Peer};

use super::{AF_INET, origin};
use crate::maps;

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

    /// The socket's cookie: never reused within a boot.
    #[inline(always)]
    pub(crate) fn socket(&self) -> u64 {
        // SAFETY: allowed in sock_ops programs since Linux 4.12.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    /// The socket's family.
    #[inline(always)]
    pub(crate) fn family(&self) -> Family {
        if field!(self.ctx, family) == AF_INET { Family::V4 } else { Family::V6 }
    }

    /// The socket's own address. `local_port` is in host byte order.
    #[inline(always)]
    pub(crate) fn own(&self) -> Own {
        let ip = address!(self.ctx, family, local_ip4, local_ip6);
        Own(Endpoint { ip, port: field!(self.ctx, local_port) })
    }

    /// The peer's address. `remote_port` holds the port in network byte order in the upper half of the word.
    #[inline(always)]
    pub(crate) fn peer(&self) -> Peer {
        let ip = address!(self.ctx, family, remote_ip4, remote_ip6);
        Peer(Endpoint { ip, port: u32::from_be(field!(self.ctx, remote_port)) & 0xffff })
    }

    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        field!(self.ctx, __bindgen_anon_2.sk)
    }

    /// Where the socket's connection was meant to go, if it is kept in the socket.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Option<&'static mut Origin> {
        origin(self.sk().cast(), None)
    }

    /// Keeps in the socket where its connection was meant to go; false when the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn set_origin(&self, mut value: Origin) -> bool {
        let Some(kept) = origin(self.sk().cast(), Some(&mut value)) else { return false };
        *kept = value;
        true
    }

    /// Asks for `BPF_SOCK_OPS_STATE_CB` on this socket.
    #[inline(always)]
    pub(crate) fn watch_state(&self) {
        let flags = field!(self.ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context is valid; the call fails only for sockets that are not full, which have no
        // callbacks.
        let _ = unsafe { bpf_sock_ops_cb_flags_set(self.ctx, flags as i32) };
    }

    /// In `BPF_SOCK_OPS_STATE_CB`, the state that the socket leaves and the one that it enters.
    #[inline(always)]
    pub(crate) fn states(&self) -> (u32, u32) {
        (field!(self.ctx, __bindgen_anon_1.args[0]), field!(self.ctx, __bindgen_anon_1.args[1]))
    }

    /// Puts the listening socket into a place, if it is free or `flags` is 0. False when it is not, or when
    /// the kernel refuses the socket.
    #[inline(always)]
    pub(crate) fn register(&self, mut key: ListenerKey, flags: u64) -> bool {
        // SAFETY: the context is valid, and the kernel locks the socket around TCP_LISTEN_CB.
        maps::listeners().update(&mut key, unsafe { &mut *self.ctx }, flags).is_ok()
    }
}
