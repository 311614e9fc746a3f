//! What `redirect trace` reads: one record per decision.
//!
//! It travels through aya-log as one argument of bytes. As ten arguments with names, the logging code alone
//! would be more than the verifier is willing to walk (over 1,000,000 instructions on Linux 6.18).

use crate::addr::Endpoint;

/// One decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// Who dialled; 0 for inbound.
    pub pid: u32,
    /// Their uid in the initial user namespace; 0 for inbound.
    pub uid: u32,
    /// Their gid in the initial user namespace; 0 for inbound.
    pub gid: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`verdict`].
    pub verdict: u32,
    /// Number of a [`crate::Rule`] or, for inbound, an [`crate::InboundRule`].
    pub rule: u32,
    /// Outbound: the address that the socket is bound to, if any. Inbound: the client.
    pub src: Endpoint,
    /// The true destination.
    pub dst: Endpoint,
}

/// Values of [`TraceRecord::kind`].
pub mod kind {
    /// A TCP `connect()`.
    pub const CONNECT: u32 = 0;
    /// A UDP `connect()` or datagram.
    pub const DATAGRAM: u32 = 1;
    /// A connection from outside.
    pub const INBOUND: u32 = 2;
    /// A packet on its way out of the pod that the guard looked at.
    pub const LEAVING: u32 = 3;
}

/// Values of [`TraceRecord::verdict`].
pub mod verdict {
    /// Left alone.
    pub const DIRECT: u32 = 0;
    /// To the sidecar's outbound listener.
    pub const OUTBOUND: u32 = 1;
    /// To the sidecar's inbound listener.
    pub const INBOUND: u32 = 2;
    /// To the DNS proxy.
    pub const DNS: u32 = 3;
    /// To the inbound listener, which is not there.
    pub const REFUSED: u32 = 4;
    /// Dropped by the guard.
    pub const DROPPED: u32 = 5;
    /// The guard would have dropped it, but only audits.
    pub const AUDITED: u32 = 6;
}

/// The size of a record.
pub const RECORD_BYTES: usize = size_of::<TraceRecord>();

const _: () = assert!(RECORD_BYTES == 72);
