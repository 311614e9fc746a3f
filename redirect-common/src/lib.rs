//! The contract between the kernel programs and user space: what the maps hold, what a hook decides, what it
//! counts. Everything here is `no_std`, so the same `decide()` runs in a hook and in `redirect explain`.
//!
//! | map | kind | key -> value | written by | read by |
//! |---|---|---|---|---|
//! | PODS | hash | netns cookie -> [`PodConfig`] | attach | every program |
//! | RANGES | LPM trie | [`RangeKey`] -> 1 | attach | connect, sendmsg |
//! | SETS | hash | [`SetKey`] -> 1 | attach | connect, sendmsg, inbound |
//! | OWN | hash | [`AddrKey`] -> 1 | attach | connect, sendmsg |
//! | DESTINATIONS | hash | [`SlotKey`] -> [`Endpoint`] | connect | getsockopt, getpeername |
//! | ORIGIN | socket storage | socket -> [`Origin`] | connect, sock_ops, getsockopt | sock_ops, getpeername, recvmsg, getsockopt |
//! | DNS_PENDING | socket storage | socket -> [`DnsPending`] | sendmsg | recvmsg |
//! | HANDOFF | hash | [`HandoffKey`] -> [`Endpoint`] | sock_ops (client side) | sock_ops (server side) |
//! | LISTENERS | sockhash | [`ListenerKey`] -> socket | sock_ops | connect, inbound |
//! | ENTERED | per-CPU array | 0 -> netns cookie | the pod's own program | inbound |
//! | INBOUND | program array | 0 -> `inbound` | install, upgrade | the pod's own program |
//! | STATS | per-CPU hash | netns cookie -> [`Counters`] | every program | `redirect stats` |
//!
//! Reading order: [`addr`], [`flow`], [`mod@decide`], [`stats`], [`abi`], [`prefix`], [`socket`].
#![no_std]

pub mod abi;
pub mod addr;
pub mod decide;
pub mod flow;
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
pub use flow::{Caller, Flow, Protocol};
pub use prefix::*;
pub use socket::*;
pub use stats::{Counters, Event};
pub use trace::TraceRecord;
