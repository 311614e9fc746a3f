//! The data path as applications and sidecars see it: real sockets in real pods, enrolled with `redirect
//! attach`.
//!
//! Modules in reading order: [`plain`] proves the harness and the kernel's own behaviour, without us;
//! [`outbound`] and [`inbound`] are the main road; [`bypass`] is what must be left alone; [`original_dst`]
//! asks every question about SO_ORIGINAL_DST; [`absent`] has no sidecar; [`field`] is what was
//! reported elsewhere; [`tproxy`] shows the application its client, [`pretend`] is where that may go wrong,
//! and in [`modes`] it begins and ends while the pod runs; [`errors`] misuses the tool;
//! [`load`] and [`cycles`] count in thousands, and [`bounds`] says how many of them one pod may have;
//! [`realtime`] has look-ups come in between, and [`neighbours`] programs of others.
//!
//! Run as root with `--test-threads=1`; `KEEP=1` keeps the pods of a failed test.

mod absent;
mod bounds;
mod bypass;
mod cycles;
mod errors;
mod field;
mod inbound;
mod interfaces;
mod load;
mod modes;
mod neighbours;
mod original_dst;
mod outbound;
mod plain;
mod pretend;
mod pretend_again;
mod realtime;
mod tproxy;

use std::net::SocketAddr;

use harness::{Family, Node, Pod, any, crowded, localhost};

/// An address without an owner (RFC 5737, RFC 3849): only a redirected connection gets an answer.
fn far_away(family: Family, port: u16) -> SocketAddr {
    let ip = if family == Family::V6 { "2001:db8::10" } else { "192.0.2.10" };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Where Envoy's connections to the application come from.
fn passthrough(family: Family) -> SocketAddr {
    let ip = if family == Family::V6 { "::6" } else { "127.0.0.6" };
    SocketAddr::new(ip.parse().expect("an address"), 0)
}

/// The same address as an IPv6 socket writes it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// A pod that is enrolled with the default policy.
fn enrolled(node: &Node, name: &str) -> Pod {
    let pod = node.pod(name);
    node.attach(&pod, &[]);
    pod
}
