//! The one list of programs. Function in `redirect-ebpf`, pin and [`Hook`] variant share a name.

use std::fmt;

use aya_obj::generated::bpf_attach_type;

use crate::policy::{InterceptionMode, Policy};

/// A place in the kernel where one of our programs is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Answers SO_ORIGINAL_DST.
    OriginalDst,
    /// Hands the true destination to the sidecar's accepted socket, learns the sidecar's listeners.
    SockOps,
    /// TPROXY mode: hands the client to the application's accepted socket.
    Handover,
    /// `getpeername()`, IPv4 sockets.
    Peername4,
    /// `getpeername()`, IPv6 sockets.
    Peername6,
    /// `connect()`, IPv4 sockets.
    Connect4,
    /// `connect()`, IPv6 sockets.
    Connect6,
    /// The source of DNS answers, IPv4 sockets.
    Recvmsg4,
    /// The source of DNS answers, IPv6 sockets.
    Recvmsg6,
    /// `bind()`, IPv4 sockets.
    Bind4,
    /// `bind()`, IPv6 sockets.
    Bind6,
    /// TPROXY mode: the proxy asks for a transparent socket.
    Transparent,
    /// DNS questions over unconnected UDP, IPv4 destinations.
    Sendmsg4,
    /// DNS questions over unconnected UDP, IPv6 destinations.
    Sendmsg6,
    /// Incoming connections.
    Inbound,
}

impl Hook {
    /// All hooks in the order in which attach links them: who takes a connection's origin before who makes
    /// one.
    pub const ALL: &[Hook] = &[
        Hook::OriginalDst,
        Hook::SockOps,
        Hook::Handover,
        Hook::Peername4,
        Hook::Peername6,
        Hook::Recvmsg4,
        Hook::Recvmsg6,
        Hook::Bind4,
        Hook::Bind6,
        Hook::Transparent,
        Hook::Connect4,
        Hook::Connect6,
        Hook::Sendmsg4,
        Hook::Sendmsg6,
        Hook::Inbound,
    ];

    /// The hooks that a policy needs, in that order: datagrams are looked at only where DNS is captured, and
    /// what TPROXY mode needs is linked in that mode only.
    pub fn needed(policy: &Policy) -> impl Iterator<Item = Hook> {
        let (dns, tproxy) = (policy.dns_capture, policy.interception_mode == InterceptionMode::Tproxy);
        let needed =
            move |hook: &Hook| (dns || !hook.is_for_datagrams()) && (tproxy || !hook.is_for_tproxy());
        Hook::ALL.iter().copied().filter(needed)
    }

    const fn is_for_tproxy(self) -> bool {
        matches!(self, Hook::Handover | Hook::Transparent)
    }

    const fn is_for_datagrams(self) -> bool {
        matches!(self, Hook::Recvmsg4 | Hook::Recvmsg6 | Hook::Sendmsg4 | Hook::Sendmsg6)
    }

    /// The name of program and pin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Hook::OriginalDst => "original_dst",
            Hook::SockOps => "sock_ops",
            Hook::Handover => "handover",
            Hook::Peername4 => "peername4",
            Hook::Peername6 => "peername6",
            Hook::Connect4 => "connect4",
            Hook::Connect6 => "connect6",
            Hook::Recvmsg4 => "recvmsg4",
            Hook::Recvmsg6 => "recvmsg6",
            Hook::Bind4 => "bind4",
            Hook::Bind6 => "bind6",
            Hook::Transparent => "transparent",
            Hook::Sendmsg4 => "sendmsg4",
            Hook::Sendmsg6 => "sendmsg6",
            Hook::Inbound => "inbound",
        }
    }

    /// The hook of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Hook> {
        Hook::ALL.iter().copied().find(|hook| hook.name() == name)
    }

    /// Whether it is linked to the pod's cgroup; else to the pod's network namespace.
    #[must_use]
    pub const fn on_cgroup(self) -> bool {
        !matches!(self, Hook::Inbound)
    }

    /// `enum bpf_attach_type` of `linux/bpf.h`.
    #[must_use]
    pub const fn attach_type(self) -> bpf_attach_type {
        match self {
            Hook::SockOps | Hook::Handover => bpf_attach_type::BPF_CGROUP_SOCK_OPS,
            Hook::Bind4 => bpf_attach_type::BPF_CGROUP_INET4_BIND,
            Hook::Bind6 => bpf_attach_type::BPF_CGROUP_INET6_BIND,
            Hook::Connect4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
            Hook::Connect6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
            Hook::Sendmsg4 => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
            Hook::Sendmsg6 => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
            Hook::Recvmsg4 => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
            Hook::Recvmsg6 => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
            Hook::Transparent => bpf_attach_type::BPF_CGROUP_SETSOCKOPT,
            Hook::OriginalDst => bpf_attach_type::BPF_CGROUP_GETSOCKOPT,
            Hook::Peername4 => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
            Hook::Peername6 => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
            Hook::Inbound => bpf_attach_type::BPF_SK_LOOKUP,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
