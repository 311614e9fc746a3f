//! Addresses that every pod has.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use redirect_common::Family;

/// `0.0.0.0:port` or `[::]:port`
#[must_use]
pub fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// `127.0.0.1:port` or `[::1]:port`
#[must_use]
pub fn localhost(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
        Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
    }
}
