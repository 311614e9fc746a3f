//! Which range has an address.

use std::net::IpAddr;

use ipnet::IpNet;

/// The longest range that contains an address.
pub(super) fn containing(ranges: &[IpNet], ip: IpAddr) -> String {
    let longest = ranges.iter().filter(|range| range.contains(&ip)).max_by_key(|range| range.prefix_len());
    longest.map_or_else(|| ip.to_string(), ToString::to_string)
}
