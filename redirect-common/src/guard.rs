//! What the guard's filters know about the pod that they stand in.

/// How many entries GUARD has: four times as many as there can be pods, because that of a pod whose namespace
/// cannot be reached is never taken back. (A `classid` of the kernel's filters has 16 bits.)
pub const GUARDED_PODS: u32 = 16_384;

/// An entry of GUARD, found by the `classid` of the filter that asks: the pod whose interface the filter is
/// on.
///
/// A filter has nothing else by which it could know its pod: a clsact program can ask for the cookie of its
/// network namespace since Linux 6.13 only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardedPod {
    /// The pod: cookie of its network namespace; 0 where the entry is free.
    pub cookie: u64,
    /// The proxy's uid as the user namespace that owns the pod's network namespace sees it, which is how
    /// `bpf_get_socket_uid()` answers.
    pub proxy_uid: u32,
    /// 1 to count and trace only, 0 to drop as well.
    pub audit: u32,
}

impl GuardedPod {
    /// A free entry.
    pub const FREE: GuardedPod = GuardedPod { cookie: 0, proxy_uid: 0, audit: 0 };
}

const _: () = assert!(size_of::<GuardedPod>() == 16);
