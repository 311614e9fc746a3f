//! Which kernel has what: each feature that the programs use, or that a document names, tried on the running
//! kernel and compared with the version in docs/kernel-facts.md. So no claim about a version can rot: the
//! tier `vm` runs this on every kernel that it boots.

use std::fs;
use std::path::Path;

use harness::{Node, kernel_test, kernel_version};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use redirect_user::kernel::sys;

/// A feature of the kernel.
struct Feature {
    /// As the document names it.
    name: &'static str,
    /// The first version that has it.
    since: (u32, u32),
    /// Tries it.
    probe: fn(&Node) -> bool,
}

impl Feature {
    /// What is wrong with the claim where a kernel of this version has the feature, or has not.
    fn wrong(&self, running: (u32, u32), there: bool) -> Option<String> {
        let claim = running >= self.since;
        (there != claim).then(|| format!("{}, since {:?}: is there: {there}", self.name, self.since))
    }
}

/// Types of programs and of their attachments, by the numbers of `linux/bpf.h`.
const SK_LOOKUP: (u32, u32) = (30, 36);
const CONNECT4: (u32, u32) = (18, 10);
const SOCK_OPS: (u32, u32) = (13, 3);
const GETSOCKOPT: (u32, u32) = (25, 21);
const CLSACT: (u32, u32) = (3, 0);

/// Helpers, by the numbers of `linux/bpf.h`.
const GET_CURRENT_TASK: i32 = 35;
const GET_NETNS_COOKIE: i32 = 122;
const SET_RETVAL: i32 = 187;

const FEATURES: &[Feature] = &[
    Feature {
        name: "`bpf_get_current_task` in sk_lookup programs",
        since: (5, 10),
        probe: |_| may_call(SK_LOOKUP, GET_CURRENT_TASK),
    },
    Feature { name: "`SO_NETNS_COOKIE`", since: (5, 14), probe: |_| tells_its_cookie() },
    Feature {
        name: "the namespace's cookie in sock_ops and sockopt programs",
        since: (5, 15),
        probe: |_| [SOCK_OPS, GETSOCKOPT].iter().all(|kind| may_call(*kind, GET_NETNS_COOKIE)),
    },
    Feature { name: "`ingress_ifindex` in sk_lookup", since: (5, 17), probe: |_| may_read(SK_LOOKUP, 64) },
    Feature { name: "RENAME_EXCHANGE in bpffs", since: (5, 17), probe: exchanges },
    Feature {
        name: "`bpf_set_retval` in sockopt programs",
        since: (5, 18),
        probe: |_| may_call(GETSOCKOPT, SET_RETVAL),
    },
    Feature {
        name: "`bpf_set_retval` in programs of sockets' addresses",
        since: (6, 1),
        probe: |_| may_call(CONNECT4, SET_RETVAL),
    },
    Feature {
        name: "`bpf_get_netns_cookie` in clsact programs",
        since: (6, 13),
        probe: |_| may_call(CLSACT, GET_NETNS_COOKIE),
    },
];

/// An instruction: code, destination and source register, offset, immediate.
fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Vec<u8> {
    [&[code, registers][..], &offset.to_ne_bytes(), &immediate.to_ne_bytes()].concat()
}

/// `r0 = 1; exit`
fn end() -> Vec<u8> {
    [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)].concat()
}

/// Whether a type of program may call a helper with its context, or with 0 in place of it.
fn may_call(kind: (u32, u32), helper: i32) -> bool {
    let call = [instruction(0x85, 0, 0, helper), end()].concat();
    let with_zero = [instruction(0xb7, 1, 0, 0), call.clone()].concat();
    [call, with_zero].iter().any(|program| sys::load(kind, program, "probe").is_ok())
}

/// Whether a type of program may read the word at an offset of its context.
fn may_read(kind: (u32, u32), offset: i16) -> bool {
    sys::load(kind, &[instruction(0x61, 0x10, offset, 0), end()].concat(), "probe").is_ok()
}

fn tells_its_cookie() -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    sys::netns_cookie(socket.expect("a socket")).is_ok()
}

fn exchanges(node: &Node) -> bool {
    let [a, b] = ["a", "b"].map(|name| node.bpffs().join(name));
    for folder in [&a, &b] {
        fs::create_dir(folder).expect("make a folder in bpffs");
    }
    let exchanged = renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).is_ok();
    for folder in [&a, &b] {
        fs::remove_dir(folder).expect("remove a folder of bpffs");
    }
    exchanged
}

#[test]
fn each_feature_is_there_since_its_version() {
    kernel_test(|node| {
        // A program with nothing in it: what is refused below is refused for what is in it.
        for kind in [SK_LOOKUP, CONNECT4, SOCK_OPS, GETSOCKOPT, CLSACT] {
            sys::load(kind, &end(), "probe").unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        }
        let running = kernel_version();
        let wrong = FEATURES.iter().filter_map(|feature| feature.wrong(running, (feature.probe)(node)));
        let wrong: Vec<_> = wrong.collect();
        assert!(
            wrong.is_empty(),
            "on Linux {running:?} docs/kernel-facts.md is wrong about:\n{}",
            wrong.join("\n")
        );
    });
}

#[test]
fn a_wrong_version_fails_in_both_directions() {
    let feature = Feature { name: "a feature", since: (6, 1), probe: |_| true };
    let said = |running, there| feature.wrong(running, there);
    assert_eq!(said((6, 1), true), None);
    assert_eq!(said((5, 19), false), None);
    assert_eq!(said((6, 12), false).as_deref(), Some("a feature, since (6, 1): is there: false"));
    assert_eq!(said((5, 15), true).as_deref(), Some("a feature, since (6, 1): is there: true"));
}

#[test]
fn the_document_has_the_same_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    let text = fs::read_to_string(root.join("docs/kernel-facts.md")).expect("read docs/kernel-facts.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| feature"));
    let documented: Vec<_> = rows.map(str::to_owned).collect();
    let row = |feature: &Feature| format!("| {} | {}.{} |", feature.name, feature.since.0, feature.since.1);
    assert_eq!(documented, FEATURES.iter().map(row).collect::<Vec<_>>());
}
