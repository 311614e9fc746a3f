//! The grammar that Istio's annotations share with the flags of `redirect attach`: lists of ranges, ports,
//! interfaces and groups.
//!
//! Strict on purpose: a value that cannot be read as it was meant must stop the pod, because each way of
//! guessing sends traffic where it was not wanted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::policy::{Guard, InterceptionMode, Ports, Ranges};

/// The longest interface name that the kernel accepts (`IFNAMSIZ` less the final zero).
const INTERFACE_NAME_MAX: usize = 15;

/// How many ranges a list may have. Kubernetes keeps at most 256 KiB of annotations for a pod, which is less;
/// a pod with more would take room in the node's map that belongs to the others.
pub const MOST_RANGES: usize = 32_768;
/// How many DNS servers a list may have.
pub const MOST_SERVERS: usize = 64;
/// How many interfaces a list may have.
pub const MOST_INTERFACES: usize = 64;

/// Why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// An item of a list of ranges.
    #[error("{item:?} is not a range in CIDR notation: {why} (example: 10.0.0.0/8)")]
    Range {
        /// The item.
        item: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An item of a list of addresses.
    #[error("{item:?} is not an address (examples: 10.96.0.10, fd00::a)")]
    Address {
        /// The item.
        item: String,
    },
    /// An item of a list of ports.
    #[error("{item:?} is not a port: {why} (a port is a number from 0 to 65535; there are no port ranges)")]
    Port {
        /// The item.
        item: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An item of a list of interfaces.
    #[error("{item:?} is not an interface name: {why}")]
    Interface {
        /// The item.
        item: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A list that is too long.
    #[error("it has {count} {what}, and at most {limit} are kept for a pod; merge them, or leave some out")]
    TooMany {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A value that must be true or false.
    #[error("{0:?} is neither true nor false")]
    Bool(String),
    /// A value from a fixed set.
    #[error("{value:?} is none of {allowed}")]
    Choice {
        /// The value.
        value: String,
        /// The set.
        allowed: &'static str,
    },
}

/// `*`, or ranges; empty means none.
pub fn ranges_or_all(text: &str) -> Result<Ranges, Malformed> {
    match text {
        "*" => Ok(Ranges::All),
        _ => ranges(text).map(Ranges::List),
    }
}

/// Ranges separated by commas, without spaces; empty means none. Host bits are cleared: they never matter.
pub fn ranges(text: &str) -> Result<Vec<IpNet>, Malformed> {
    at_most(MOST_RANGES, "ranges", items(text).map(range).collect::<Result<Vec<_>, _>>()?)
}

/// `*`, or addresses separated by commas, without spaces, as ranges of one address; empty means none.
pub fn addresses_or_all(text: &str) -> Result<Ranges, Malformed> {
    if text == "*" {
        return Ok(Ranges::All);
    }
    let address = |item: &str| {
        let refused = || Malformed::Address { item: shorten(item) };
        item.parse::<IpAddr>().map(IpNet::from).map_err(|_| refused())
    };
    at_most(MOST_SERVERS, "addresses", items(text).map(address).collect::<Result<Vec<_>, _>>()?)
        .map(Ranges::List)
}

/// `*`, or ports; empty means none.
pub fn ports_or_all(text: &str) -> Result<Ports, Malformed> {
    match text {
        "*" => Ok(Ports::All),
        _ => ports(text).map(Ports::List),
    }
}

/// Ports separated by commas, spaces around them allowed; empty means none.
pub fn ports(text: &str) -> Result<BTreeSet<u16>, Malformed> {
    items(text).map(port).collect()
}

/// Interface names separated by commas, spaces around them allowed; empty means none.
pub fn interfaces(text: &str) -> Result<Vec<String>, Malformed> {
    at_most(MOST_INTERFACES, "interfaces", items(text).map(interface).collect::<Result<Vec<_>, _>>()?)
}

/// True or false in the spellings that Istio reads.
pub fn boolean(text: &str) -> Result<bool, Malformed> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Malformed::Bool(shorten(text))),
    }
}

/// `REDIRECT` or `TPROXY`.
pub fn interception_mode(text: &str) -> Result<InterceptionMode, Malformed> {
    InterceptionMode::from_name(text)
        .ok_or_else(|| Malformed::Choice { value: shorten(text), allowed: "REDIRECT, TPROXY" })
}

/// `enforce`, `audit` or `off`.
pub fn guard(text: &str) -> Result<Guard, Malformed> {
    Guard::from_name(text)
        .ok_or_else(|| Malformed::Choice { value: shorten(text), allowed: "enforce, audit, off" })
}

/// A value cut to what fits in an error message.
#[must_use]
pub fn shorten(text: &str) -> String {
    const KEEP: usize = 160;
    match text.char_indices().nth(KEEP) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

fn at_most<T>(limit: usize, what: &'static str, list: Vec<T>) -> Result<Vec<T>, Malformed> {
    if list.len() > limit { Err(Malformed::TooMany { count: list.len(), what, limit }) } else { Ok(list) }
}

/// The items between the commas. A trailing comma is an empty item, and so an error of the item's parser.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(move |_| !text.is_empty())
}

fn range(item: &str) -> Result<IpNet, Malformed> {
    let refuse = |why| Err(Malformed::Range { item: shorten(item), why });
    if item.is_empty() {
        return refuse("an item of the list is empty");
    }
    if item.contains(char::is_whitespace) {
        return refuse("it contains a space");
    }
    if item == "*" {
        return refuse("* stands alone, and only in the include list");
    }
    let Some((address, prefix)) = item.split_once('/') else { return refuse("the prefix length is missing") };
    // std's parser refuses 010.0.0.0, which some read as octal; /08 and /+8 have to be refused here.
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) || (prefix.len() > 1 && prefix.starts_with('0')) {
        return refuse("the prefix length is not a plain number");
    }
    let Ok(address) = IpAddr::from_str(address) else { return refuse("the address is invalid") };
    match prefix.parse().map(|length| IpNet::new(address, length)) {
        Ok(Ok(net)) => Ok(net.trunc()),
        _ => refuse("the prefix length is invalid"),
    }
}

fn port(item: &str) -> Result<u16, Malformed> {
    let digits = item.trim();
    let refuse = |why| Err(Malformed::Port { item: shorten(item), why });
    if digits.is_empty() {
        return refuse("an item of the list is empty");
    }
    if digits == "*" {
        return refuse("* stands alone, and only in includeInboundPorts");
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse("it is not a number");
    }
    digits.parse().or_else(|_| refuse("it is too large"))
}

fn interface(item: &str) -> Result<String, Malformed> {
    let name = item.trim();
    let refuse = |why| Err(Malformed::Interface { item: shorten(item), why });
    if name.is_empty() {
        return refuse("an item of the list is empty");
    }
    if name.len() > INTERFACE_NAME_MAX {
        return refuse("it is longer than 15 bytes");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return refuse("it does not begin with a letter");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return refuse("it holds a character other than letters, digits, '_', '.' and '-'");
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_cidrs_without_spaces() {
        assert_eq!(ranges(""), Ok(vec![]));
        assert_eq!(ranges("10.1.2.3/8,fd00::1/64"), Ok(nets(&["10.0.0.0/8", "fd00::/64"])));
        assert_eq!(ranges("0.0.0.0/0,::/0"), Ok(nets(&["0.0.0.0/0", "::/0"])));
        for bad in [
            "*",
            " ",
            ",",
            "10.0.0.0",
            "10.0.0.0/8,",
            ",10.0.0.0/8",
            "10.0.0.0/8, 11.0.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/8/8",
            "010.0.0.0/8",
            "10.0.0/8",
            "256.0.0.0/8",
            "fd00::/129",
            "fe80::1%eth0/64",
            "*,10.0.0.0/8",
            "any/8",
            "\u{661}0.0.0.0/8",
        ] {
            let error = ranges(bad).unwrap_err();
            assert!(matches!(error, Malformed::Range { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_star_is_all_only_where_all_has_a_meaning() {
        assert_eq!(ranges_or_all("*"), Ok(Ranges::All));
        assert_eq!(ranges_or_all(""), Ok(Ranges::List(vec![])));
        assert!(ranges_or_all("* ").is_err() && ranges_or_all("*,1.0.0.0/8").is_err());
        assert_eq!(ports_or_all("*"), Ok(Ports::All));
        assert_eq!(ports_or_all(""), Ok(Ports::List(BTreeSet::new())));
        assert!(ports_or_all("*,80").is_err() && ports_or_all(" *").is_err());
        assert!(ports("*").is_err());
    }

    #[test]
    fn ports_are_numbers_and_nothing_else() {
        assert_eq!(ports(""), Ok(BTreeSet::new()));
        assert_eq!(ports(" 80 ,443,0,65535,80"), Ok(BTreeSet::from([0, 80, 443, 65535])));
        assert_eq!(ports("00080"), Ok(BTreeSet::from([80])));
        for bad in [
            " ",
            "80,",
            ",80",
            "80,,81",
            "65536",
            "-1",
            "+80",
            "80-90",
            "http",
            "0x50",
            "8 0",
            "٨٠",
            "99999999999999999999",
        ] {
            let error = ports(bad).unwrap_err();
            assert!(matches!(error, Malformed::Port { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        assert_eq!(interfaces(""), Ok(vec![]));
        assert_eq!(interfaces("eth1, net2.100"), Ok(vec!["eth1".to_owned(), "net2.100".to_owned()]));
        assert_eq!(interfaces("abcdefghijklmno"), Ok(vec!["abcdefghijklmno".to_owned()]));
        for bad in
            [" ", "eth1,", "abcdefghijklmnop", "1eth", "eth 1", "eth1\n-j ACCEPT", "eth/1", "ethé", "."]
        {
            let error = interfaces(bad).unwrap_err();
            assert!(matches!(error, Malformed::Interface { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_list_is_as_long_as_a_node_can_keep_for_one_pod() {
        let list = |count: usize| vec!["10.0.0.0/8"; count].join(",");
        assert_eq!(ranges(&list(MOST_RANGES)).unwrap().len(), MOST_RANGES);
        let text = ranges(&list(MOST_RANGES + 1)).unwrap_err().to_string();
        assert!(text.contains("32769 ranges") && text.contains("at most 32768"), "{text}");
        let names = vec!["net1"; MOST_INTERFACES + 1].join(",");
        assert!(interfaces(&names).unwrap_err().to_string().contains("65 interfaces"));
        let all = (0..=65535).map(|port: u16| port.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(ports(&all).unwrap().len(), 65536, "ports need no limit");
    }

    #[test]
    fn booleans_are_those_that_go_reads() {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(yes), Ok(true));
        }
        for no in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(no), Ok(false));
        }
        for bad in ["", "yes", "tRUE", " true", "2"] {
            assert_eq!(boolean(bad), Err(Malformed::Bool(bad.to_owned())));
        }
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        assert_eq!(shorten("kurz"), "kurz");
        let long = "ä".repeat(200);
        assert_eq!(shorten(&long), format!("{}... (400 bytes)", "ä".repeat(160)));
    }
}
