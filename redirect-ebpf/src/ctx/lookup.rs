//! The context of sk_lookup.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use aya_ebpf::programs::SkLookupContext;
use redirect_common::{Endpoint, Family, ListenerKey};

use super::{AF_INET, TCP};
use crate::listener::Receiver;
use crate::maps;

/// The index of `lo`, the first interface of every network namespace (`loopback_net_init()`).
const LOOPBACK_IFINDEX: u32 = 1;

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

    /// The packet's family.
    #[inline(always)]
    pub(crate) fn family(&self) -> Family {
        if field!(self.ctx, family) == AF_INET { Family::V4 } else { Family::V6 }
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
}

impl Receiver for Lookup {
    /// An IPv6-only socket does not take an IPv4 packet. What a program of somebody else has chosen before is
    /// replaced: without the flag the kernel says EEXIST then (`bpf_sk_lookup_assign()`, net/core/filter.c).
    #[inline(always)]
    fn assign(&self, key: &ListenerKey) -> bool {
        // SAFETY: a sockhash look-up returns a referenced socket or null; it is released below.
        let sk = unsafe { bpf_map_lookup_elem(maps::listeners_ptr(), core::ptr::from_ref(key).cast()) };
        if sk.is_null() {
            return false;
        }
        // SAFETY: sk is the socket found above.
        let assigned = unsafe { bpf_sk_assign(self.ctx.cast(), sk, BPF_SK_LOOKUP_F_REPLACE.into()) } == 0;
        // SAFETY: the reference taken by the look-up above.
        unsafe { bpf_sk_release(sk) };
        assigned
    }
}
