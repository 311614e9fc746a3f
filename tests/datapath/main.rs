//! The data path as applications and sidecars see it: real sockets in real pods, enrolled with `redirect
//! attach`.
//!
//! Modules in reading order: [`plain`] proves the harness and the kernel's own behaviour, without us;
//! [`outbound`] and [`inbound`] are the main road; [`bypass`] is what must be left alone; [`original_dst`]
//! asks every question about SO_ORIGINAL_DST; [`absent`] has no sidecar; [`errors`] misuses the tool;
//! [`load`] and [`cycles`] count in thousands.
//!
//! Run as root with `--test-threads=1`; `KEEP=1` keeps the pods of a failed test.

mod absent;
mod bypass;
mod cycles;
mod errors;
mod inbound;
mod interfaces;
mod load;
mod original_dst;
mod outbound;
mod plain;

use std::net::SocketAddr;

use harness::{Node, Pod};

/// Both families.
const FAMILIES: [bool; 2] = [false, true];

/// An address without an owner (RFC 5737, RFC 3849): only a redirected connection gets an answer.
fn far_away(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { "2001:db8::10" } else { "192.0.2.10" };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// `0.0.0.0:port` or `[::]:port`
fn any(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { "::" } else { "0.0.0.0" };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// `127.0.0.1:port` or `[::1]:port`
fn localhost(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { "::1" } else { "127.0.0.1" };
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Where Envoy's connections to the application come from.
fn passthrough(v6: bool) -> SocketAddr {
    let ip = if v6 { "::6" } else { "127.0.0.6" };
    SocketAddr::new(ip.parse().expect("an address"), 0)
}

/// The same address as an IPv6 socket writes it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// Two destinations for which the pod's private prefix has one slot: the first to be dialled gets it,
/// connections to the other one go by HANDOFF.
fn crowded(v6: bool) -> [SocketAddr; 2] {
    let slot = |to: SocketAddr| redirect_common::slot_of(&to.into());
    let first = far_away(v6, 8080);
    let ip = |n: u32| match v6 {
        false => std::net::IpAddr::from((0xc633_6400 | n).to_be_bytes()),
        true => std::net::IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(n)).to_be_bytes()),
    };
    let others = (1..255).flat_map(|n| (1..2000).map(move |port| SocketAddr::new(ip(n), port)));
    let second = others
        .into_iter()
        .find(|to| slot(*to) == slot(first))
        .expect("16,384 slots for 500,000 destinations");
    [first, second]
}

/// A pod that is enrolled with the default policy.
fn enrolled(node: &Node, name: &str) -> Pod {
    let pod = node.pod(name);
    node.attach(&pod, &[]);
    pod
}
