//! The contract between the kernel programs and user space: what the maps hold, what a hook decides, what it
//! counts. Everything here is `no_std`, so the same `decide()` runs in a hook and in `redirect explain`.
//!
//! The maps, by key and value; who writes and who reads them is in docs/maps.md, which a test compares with
//! the object.
//!
//! | map | kind | key -> value |
//! |---|---|---|
//! | PODS | hash | netns cookie -> [`PodConfig`] |
//! | RANGES | LPM trie | [`RangeKey`] -> 1 for in, 0 for out |
//! | PORTS | hash | [`PortsKey`] -> [`PortBlock`] |
//! | SETS | hash | [`SetKey`] -> 1 |
//! | OWN | hash | [`AddrKey`] -> 1 |
//! | DESTINATIONS | hash | [`SlotKey`] -> [`Kept<SlotKey>`](Kept) |
//! | CLAIMS | hash | netns cookie -> [`Claims`] |
//! | ORIGIN | socket storage | socket -> [`Origin`] |
//! | DNS_PROXIES | hash | netns cookie -> [`DnsProxy`] |
//! | DNS_ASKED | LRU hash | [`DnsClient`] -> [`DnsAsked`] |
//! | HANDOFF | hash | [`HandoffKey`] -> [`Kept<HandoffKey>`](Kept) |
//! | CLIENTS | hash | [`HandoffKey`] -> [`Kept<HandoffKey>`](Kept) |
//! | LISTENERS | sockhash | [`ListenerKey`] -> socket |
//! | LISTENING | hash | [`ListeningKey`] -> socket cookie |
//! | ENTERED | per-CPU array | 0 -> [`Entered`] |
//! | ASKING | per-CPU array | 0 -> [`Asking`] |
//! | GUARD | array | `classid` of a filter -> [`GuardedPod`] |
//! | INBOUND | program array | 0 -> `inbound` |
//! | STATS | per-CPU hash | netns cookie -> [`Counters`] |
//! | TRACED | array | 0 -> latest deadline of TRACES |
//! | TRACES | hash | netns cookie -> deadline |
//!
//! Reading order: [`addr`], [`flow`], [`mod@decide`], [`stats`], [`abi`], [`prefix`], [`mod@dns`],
//! [`socket`].
#![no_std]

pub mod abi;
pub mod addr;
pub mod decide;
pub mod dns;
pub mod flow;
pub mod guard;
pub mod kept;
#[cfg(feature = "user")]
mod pod;
pub mod prefix;
pub mod socket;
pub mod stats;
pub mod trace;

pub use abi::*;
pub use addr::{Endpoint, Family, Ip};
pub use decide::{
    Facts, Inbound, InboundFacts, InboundRule, Outbound, PROXY_PORTS, Rule, STATUS_PORT, Target, decide,
    decide_inbound,
};
pub use dns::{DnsAsked, DnsClient, DnsProxy};
pub use flow::{Caller, Flow, Protocol};
pub use guard::{GUARDED_PODS, GuardedPod};
pub use kept::{Kept, Key};
pub use prefix::*;
pub use socket::*;
pub use stats::{Counters, Event};
pub use trace::TraceRecord;
