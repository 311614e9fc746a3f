//! The context of getsockopt and setsockopt.

use aya_ebpf::bindings::{BPF_TCP_CLOSE, BPF_TCP_LISTEN, bpf_sockopt};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockoptContext;
use redirect_common::{Caller, Endpoint, Origin, Own, Peer};

use super::{MPTCP, TCP, origin};

/// The context of getsockopt and setsockopt.
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

    /// Tells the kernel that the value is not changed. Of getsockopt it copies nothing then, however long the
    /// answer; of setsockopt it takes the caller's own. (Otherwise it refuses an answer longer than the
    /// caller's buffer, and one longer than a page is cut off.)
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

    /// Where the socket's connection was meant to go, if it is kept in the socket.
    #[inline(always)]
    pub(crate) fn origin(&self) -> Option<&'static mut Origin> {
        origin(field!(self.ctx, __bindgen_anon_1.sk).cast(), None)
    }

    /// Keeps it in the socket; false when the kernel has no memory for it.
    #[inline(always)]
    pub(crate) fn set_origin(&self, mut value: Origin) -> bool {
        let kept = origin(field!(self.ctx, __bindgen_anon_1.sk).cast(), Some(&mut value));
        let Some(kept) = kept else { return false };
        *kept = value;
        true
    }

    /// Of setsockopt: the call is done with, and succeeds; the kernel's handler does not run.
    #[inline(always)]
    pub(crate) fn answer_by_itself(&self) {
        set_field!(self.ctx, optlen, -1);
    }

    /// Of setsockopt: the kernel's handler runs for another option.
    #[inline(always)]
    pub(crate) fn become_option(&self, level: i32, name: i32) {
        set_field!(self.ctx, level, level);
        set_field!(self.ctx, optname, name);
    }

    /// Of setsockopt, for an option of SOL_IP that is a switch: whether the value is a number other than 0.
    /// As the kernel reads it (`do_ip_setsockopt()`), four bytes or, where they are fewer, the first.
    #[inline(always)]
    pub(crate) fn is_switched_on(&self) -> bool {
        let start = field!(self.ctx, __bindgen_anon_2.optval).cast::<u8>();
        let end = field!(self.ctx, __bindgen_anon_3.optval_end).cast::<u8>();
        if self.len() >= 4 && start.wrapping_add(4) <= end {
            // SAFETY: bounds checked above; any bytes are a number.
            return unsafe { start.cast::<i32>().read_unaligned() } != 0;
        }
        // SAFETY: as above.
        self.len() >= 1 && start.wrapping_add(1) <= end && unsafe { start.read() } != 0
    }

    /// Whether the socket is a TCP one.
    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        if sk.is_null() {
            return false;
        }
        let protocol = field!(sk, protocol);
        protocol == TCP || protocol == MPTCP
    }

    /// Whether the socket is an MPTCP one.
    #[inline(always)]
    pub(crate) fn is_mptcp(&self) -> bool {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        !sk.is_null() && field!(sk, protocol) == MPTCP
    }

    /// Whether the socket neither listens nor has a connection.
    #[inline(always)]
    pub(crate) fn is_closed(&self) -> bool {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        !sk.is_null() && field!(sk, state) == BPF_TCP_CLOSE
    }

    /// Who calls.
    #[inline(always)]
    pub(crate) fn caller(&self) -> Caller {
        super::caller()
    }

    /// Whether the socket is a TCP one, neither listening nor closed: accepted, connected, or on its way
    /// there.
    #[inline(always)]
    pub(crate) fn is_connection(&self) -> bool {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        if sk.is_null() {
            return false;
        }
        let (protocol, state) = (field!(sk, protocol), field!(sk, state));
        (protocol == TCP || protocol == MPTCP) && state != BPF_TCP_LISTEN && state != BPF_TCP_CLOSE
    }

    /// The connection's two ends, as [`super::SockOps`] saw them in the handshake.
    #[inline(always)]
    pub(crate) fn ends(&self) -> Option<(Own, Peer)> {
        let sk = field!(self.ctx, __bindgen_anon_1.sk);
        if sk.is_null() {
            return None;
        }
        let peer = address!(sk, family, dst_ip4, dst_ip6);
        let own = address!(sk, family, src_ip4, src_ip6);
        let peer_port = u32::from(u16::from_be(field!(sk, dst_port)));
        let own = Own(Endpoint { ip: own, port: field!(sk, src_port) });
        Some((own, Peer(Endpoint { ip: peer, port: peer_port })))
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

    /// Of getsockopt: whether the kernel's own handler has an answer.
    #[inline(always)]
    pub(crate) fn is_answered(&self) -> bool {
        field!(self.ctx, retval) == 0
    }

    /// Makes the call fail with EINVAL, the kernel's answer to a buffer that is too small.
    #[inline(always)]
    pub(crate) fn fail_with_invalid(&self) {
        const EINVAL: i32 = 22;
        self.fail_with(EINVAL);
    }

    /// Makes the call fail with this error.
    #[inline(always)]
    pub(crate) fn fail_with(&self, errno: i32) {
        super::fail_with(errno);
    }
}
