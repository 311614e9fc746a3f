//! Rules of nftables and iptables in a pod's network namespace, as far as they rewrite addresses. Read by
//! netlink, so that no tool needs to be in the image.
//!
//! iptables' older kind (`iptables-legacy`) keeps its rules elsewhere; there only its own tool can read them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::Command;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::pod::netns::{Netns, inside};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// A chain has one of the names that Istio gives.
    pub istio: bool,
    /// Kinds of rules that rewrite addresses, by iptables' names.
    pub rewriting: BTreeSet<&'static str>,
}

/// What in a rule's bytes says that it rewrites: the target of iptables' compatible layer, or the expression
/// of nftables (`NFTA_EXPR_NAME`, ended by a zero).
const MARKS: [(&[u8], &str); 7] = [
    (b"DNAT\0", "DNAT"),
    (b"REDIRECT\0", "REDIRECT"),
    (b"MASQUERADE\0", "MASQUERADE"),
    (b"TPROXY\0", "TPROXY"),
    (b"\x0a\x00\x01\x00redir\0", "REDIRECT"),
    (b"\x09\x00\x01\x00masq\0", "MASQUERADE"),
    (b"\x08\x00\x01\x00nat\0", "NAT"),
];

/// Looks into a namespace.
///
/// # Errors
/// The kernel does not answer, or rules of the older kind are there and no tool can read them.
pub fn look(netns: &Netns) -> io::Result<Found> {
    let mut found = Found::default();
    inside(netns.file(), || -> io::Result<()> {
        for message in nftables_rules()? {
            note(&mut found, &message);
        }
        // A file below /proc/net belongs to the reader's namespace.
        let legacy = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];
        for (file, tool) in legacy.iter().zip(["iptables-legacy-save", "ip6tables-legacy-save"]) {
            if fs::read_to_string(file).unwrap_or_default().lines().any(|table| table == "nat") {
                note_legacy(&mut found, tool)?;
            }
        }
        Ok(())
    })??;
    Ok(found)
}

fn note(found: &mut Found, message: &[u8]) {
    let has = |mark: &[u8]| message.windows(mark.len()).any(|window| window == mark);
    found.istio |= has(b"ISTIO_");
    found.rewriting.extend(MARKS.iter().filter(|(mark, _)| has(mark)).map(|(_, kind)| *kind));
}

fn note_legacy(found: &mut Found, tool: &str) -> io::Result<()> {
    let saved = Command::new(tool).args(["-t", "nat"]).output().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("rules of iptables-legacy are there, and {tool} cannot be run: {error}"),
        )
    })?;
    let text = String::from_utf8_lossy(&saved.stdout);
    found.istio |= text.contains("ISTIO_");
    for kind in ["DNAT", "REDIRECT", "MASQUERADE"] {
        if text.contains(&format!("-j {kind}")) {
            found.rewriting.insert(kind);
        }
    }
    Ok(())
}

/// Every rule as the kernel sends it. A kernel without nftables has none.
fn nftables_rules() -> io::Result<Vec<Vec<u8>>> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETRULE: u16 = 7;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let socket = match Socket::new(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    // `struct nlmsghdr` (16 bytes), then `struct nfgenmsg`: family unspecified, version 0, resource 0.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE).to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 12]);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut rules = Vec::new();
    loop {
        let (packet, _) = socket.recv_from_full()?;
        let mut rest = packet.as_slice();
        while let Some(header) = rest.get(..16) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let length = length.clamp(16, rest.len());
            match u16::from_ne_bytes([header[4], header[5]]) {
                NLMSG_DONE => return Ok(rules),
                NLMSG_ERROR => return refusal(&rest[..length]).map_or(Ok(rules), Err),
                _ => rules.push(rest[..length].to_vec()),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// The kernel's error; none where it does not know nftables at all.
fn refusal(message: &[u8]) -> Option<io::Error> {
    let code =
        message.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))?;
    let unknown = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOENT].contains(&-code);
    (code != 0 && !unknown).then(|| io::Error::from_raw_os_error(-code))
}
