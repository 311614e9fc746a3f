//! Every path below bpffs, as pure functions.
//!
//! ```text
//! <bpffs>/redirect-cni/
//!   new/                                   an installation that has not finished
//!   v<ABI>/progs/<hook>                    programs, loaded once per node, and their constants (`rodata`)
//!   v<ABI>/progs-new/                      during an upgrade, the other set of programs
//!   v<ABI>/maps/<map>
//!   v<ABI>/pods/<container-id>/<ifname>/   one attachment:
//!       <hook>                             a link
//!       netns-<cookie>/                    a folder whose name says which pod's entries the maps hold
//! ```

use std::path::PathBuf;

use redirect_common::ABI_VERSION;

use crate::kernel::hook::Hook;
use crate::node::Node;

/// The folder of all versions.
#[must_use]
pub fn root(node: &Node) -> PathBuf {
    node.bpffs.join("redirect-cni")
}

/// The folder of this version.
#[must_use]
pub fn version(node: &Node) -> PathBuf {
    root(node).join(format!("v{ABI_VERSION}"))
}

/// Where an installation is prepared before it is renamed to [`version`].
#[must_use]
pub fn unfinished(node: &Node) -> PathBuf {
    root(node).join("new")
}

/// The folder of the programs.
#[must_use]
pub fn programs(node: &Node) -> PathBuf {
    version(node).join("progs")
}

/// Where an upgrade prepares the next set of programs.
#[must_use]
pub fn replacement(node: &Node) -> PathBuf {
    version(node).join("progs-new")
}

/// A pinned program.
#[must_use]
pub fn program(node: &Node, hook: Hook) -> PathBuf {
    programs(node).join(hook.name())
}

/// A pinned map.
#[must_use]
pub fn map(node: &Node, name: &str) -> PathBuf {
    version(node).join(map_file(name))
}

/// Where in a version's folder a map is pinned. The compiler's read-only data belongs to the programs and is replaced with
/// them; its name has a dot, which bpffs refuses.
#[must_use]
pub fn map_file(name: &str) -> PathBuf {
    match name.strip_prefix('.') {
        Some(constants) => PathBuf::from("progs").join(constants),
        None => PathBuf::from("maps").join(name),
    }
}

/// The folder of all attachments.
#[must_use]
pub fn pods(node: &Node) -> PathBuf {
    version(node).join("pods")
}

/// The folder of a container's attachments.
#[must_use]
pub fn container(node: &Node, container_id: &str) -> PathBuf {
    pods(node).join(encode(container_id))
}

/// The folder of one attachment.
#[must_use]
pub fn attachment(node: &Node, container_id: &str, ifname: &str) -> PathBuf {
    container(node, container_id).join(encode(ifname))
}

/// The folder that names the pod's network namespace.
#[must_use]
pub fn cookie_name(cookie: u64) -> String {
    format!("netns-{cookie:x}")
}

/// The reverse of [`cookie_name`].
#[must_use]
pub fn parse_cookie_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("netns-")?, 16).ok()
}

/// A name as a file name that bpffs accepts: letters, digits and `-` stay, everything else becomes `_xx`.
#[must_use]
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}"));
        }
    }
    out
}

/// The reverse of [`encode`]; `None` for what `encode` never writes.
#[must_use]
pub fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_one_that_bpffs_accepts_and_comes_back() {
        for name in ["eth0", "net1.100", "a_b", "..", "", "héllo", "x/y"] {
            let encoded = encode(name);
            assert!(!encoded.contains(['.', '/']), "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
        assert_eq!(decode("_zz"), None);
        assert_eq!(decode("_2"), None);
    }

    #[test]
    fn a_cookie_survives_in_a_folder_name() {
        assert_eq!(parse_cookie_name(&cookie_name(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_cookie_name("connect4"), None);
    }
}
