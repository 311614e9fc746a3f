//! Lets aya copy the ABI types between user space and the kernel as plain bytes.
//!
//! SAFETY of every `impl` below: the type is `repr(C)`, made of integers only and without padding (held by
//! `tests/abi.rs`), so any bytes are a valid value and every byte is initialised.

use crate::{
    AddrKey, Claims, Counters, DnsAsked, DnsClient, DnsProxy, Endpoint, Entered, GuardedPod, HandoffKey, Ip,
    ListenerKey, ListeningKey, Origin, PodConfig, PortBlock, PortsKey, RangeKey, SetKey, SlotKey,
    TraceRecord, kept::Kept,
};

macro_rules! plain_bytes {
    ($($name:ty),+) => { $(
        // SAFETY: see the top of this file.
        unsafe impl aya::Pod for $name {}
    )+ };
}

plain_bytes!(
    AddrKey,
    Claims,
    Counters,
    DnsAsked,
    DnsClient,
    DnsProxy,
    Endpoint,
    Entered,
    GuardedPod,
    HandoffKey,
    Ip,
    ListenerKey,
    Origin,
    Kept<HandoffKey>,
    Kept<SlotKey>,
    ListeningKey,
    PodConfig,
    PortBlock,
    PortsKey,
    RangeKey,
    SetKey,
    SlotKey,
    TraceRecord
);
