//! Programs of somebody else, who has hooks of their own on the node or in a pod: the smallest that there
//! are, under any name, written as instructions and attached the way that has no link.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_ATTACH: i64 = 8;
const BPF_PROG_DETACH: i64 = 9;
const BPF_LINK_CREATE: i64 = 28;

/// Attached so that nothing may be attached below.
pub const EXCLUSIVE: u32 = 0;
/// `BPF_F_ALLOW_MULTI`
pub const MULTI: u32 = 2;
/// `BPF_F_ALLOW_MULTI` and `BPF_F_PREORDER`, since Linux 6.15.
pub const PREORDER: u32 = 2 | 64;

/// A hook: the type of its programs, and where they are attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    program: u32,
    attach: u32,
}

const fn address(attach: u32) -> Hook {
    Hook { program: 18, attach }
}

/// `connect()` on an IPv4 socket.
pub const CONNECT4: Hook = address(10);

/// A datagram that is sent to an address, on an IPv4 socket.
pub const SENDMSG4: Hook = address(14);

/// What happens to a TCP socket.
pub const SOCK_OPS: Hook = Hook { program: 13, attach: 3 };

/// In a network namespace, where no established socket takes a packet.
pub const SK_LOOKUP: Hook = Hook { program: 30, attach: 36 };

/// Every hook of a cgroup that redirect-cni has a program for.
pub const OF_CGROUPS: [Hook; 13] = [
    address(8),
    address(9),
    CONNECT4,
    address(11),
    address(14),
    address(15),
    address(19),
    address(20),
    Hook { program: 25, attach: 21 },
    Hook { program: 25, attach: 22 },
    address(29),
    address(30),
    SOCK_OPS,
];

/// One instruction, `struct bpf_insn`.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

/// `r0 = value; exit`: what the kernel asks is answered by this, and nothing is changed.
#[must_use]
pub fn answer(value: i32) -> Vec<u64> {
    vec![instruction(0xb7, 0, 0, value), instruction(0x95, 0, 0, 0)]
}

/// For [`CONNECT4`]: whoever dials one address gets to another, as with a load balancer at `connect()`.
#[must_use]
pub fn rewrite(from: std::net::Ipv4Addr, to: std::net::Ipv4Addr) -> Vec<u64> {
    const USER_IP4: i16 = 4;
    let word = |ip: std::net::Ipv4Addr| i32::from_ne_bytes(ip.octets());
    let mut code = vec![
        // w2 = ctx.user_ip4; where it is another one, three on.
        instruction(0x61, 0x12, USER_IP4, 0),
        instruction(0x56, 0x02, 2, word(from)),
        // w2 = to; ctx.user_ip4 = w2
        instruction(0xb4, 0x02, 0, word(to)),
        instruction(0x63, 0x21, USER_IP4, 0),
    ];
    code.extend(answer(1));
    code
}

/// For [`SOCK_OPS`]: at every callback the socket's wishes for callbacks are replaced by these
/// (`BPF_SOCK_OPS_*_CB_FLAG`), those of other programs too.
#[must_use]
pub fn replace_flags(flags: i32) -> Vec<u64> {
    const CB_FLAGS_SET: i32 = 59;
    let mut code = vec![instruction(0xb4, 0x02, 0, flags), instruction(0x85, 0, 0, CB_FLAGS_SET)];
    code.extend(answer(1));
    code
}

/// A table with one socket in it, for [`give_to`].
///
/// # Panics
/// The kernel refuses it.
#[must_use]
pub fn table_of(socket: &impl std::os::fd::AsRawFd) -> OwnedFd {
    const SOCKMAP: u32 = 15;
    let table = descriptor(bpf(BPF_MAP_CREATE, &mut [SOCKMAP, 4, 8, 1, 0]), "make a map");
    let (key, value) = (0_u32, socket.as_raw_fd() as u64);
    let (key, value) = (&raw const key as u64, &raw const value as u64);
    let mut attr = [table.as_raw_fd() as u32, 0, key as u32, (key >> 32) as u32, 0, 0, 0, 0];
    attr[4..6].copy_from_slice(&[value as u32, (value >> 32) as u32]);
    let done = bpf(BPF_MAP_UPDATE_ELEM, &mut attr);
    assert!(done == 0, "put a socket into a map: {}", io::Error::last_os_error());
    table
}

/// For [`SK_LOOKUP`]: all that arrives is given to the socket of a table.
#[must_use]
pub fn give_to(table: &OwnedFd) -> Vec<u64> {
    const LOOK_UP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    /// `BPF_SK_LOOKUP_F_REPLACE`: in the place of what a program before has chosen.
    const REPLACE: i32 = 1;
    let mut code = vec![
        // r6 = ctx; the key 0 on the stack; r1 = table; r2 = key; look it up
        instruction(0xbf, 0x16, 0, 0),
        instruction(0x62, 0x0a, -4, 0),
        instruction(0x18, 0x11, 0, table.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 0x02, 0, -4),
        instruction(0x85, 0, 0, LOOK_UP),
        // Where there is no socket, seven on.
        instruction(0x15, 0x00, 7, 0),
        // r7 = socket; assign it, in the place of another; release it
        instruction(0xbf, 0x07, 0, 0),
        instruction(0xbf, 0x61, 0, 0),
        instruction(0xbf, 0x72, 0, 0),
        instruction(0xb7, 0x03, 0, REPLACE),
        instruction(0x85, 0, 0, ASSIGN),
        instruction(0xbf, 0x71, 0, 0),
        instruction(0x85, 0, 0, RELEASE),
    ];
    code.extend(answer(1));
    code
}

fn bpf(command: i64, attr: &mut [u32]) -> i64 {
    // SAFETY: the attribute's size goes with it, and what it points to lives until the call is over.
    unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) }
}

fn descriptor(answer: i64, what: &str) -> OwnedFd {
    assert!(answer >= 0, "{what}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(answer).expect("a descriptor")) }
}

/// Loads a program.
///
/// # Panics
/// The kernel refuses it.
#[must_use]
pub fn load(hook: Hook, name: &str, code: &[u64]) -> OwnedFd {
    let license = c"GPL";
    // The beginning of `union bpf_attr` of linux/bpf.h, in words of 32 bits.
    let mut attr = [0_u32; 18];
    let pointer = |words: &mut [u32], pointer: u64| {
        words.copy_from_slice(&[pointer as u32, (pointer >> 32) as u32]);
    };
    attr[0] = hook.program;
    attr[1] = u32::try_from(code.len()).expect("a short program");
    pointer(&mut attr[2..4], code.as_ptr() as u64);
    pointer(&mut attr[4..6], license.as_ptr() as u64);
    let mut bytes = [0; 16];
    bytes[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    for (word, chunk) in attr[12..16].iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().expect("four bytes"));
    }
    attr[17] = hook.attach;
    descriptor(bpf(BPF_PROG_LOAD, &mut attr), "load a program")
}

/// A program on a cgroup. It is detached at the end.
#[derive(Debug)]
pub struct Attached {
    cgroup: File,
    program: OwnedFd,
    hook: Hook,
}

impl Attached {
    /// # Panics
    /// The kernel refuses it.
    #[must_use]
    pub fn new(cgroup: &Path, hook: Hook, name: &str, code: &[u64], flags: u32) -> Attached {
        Attached::try_new(cgroup, hook, name, code, flags)
            .unwrap_or_else(|error| panic!("attach {hook:?} to {}: {error}", cgroup.display()))
    }

    /// # Errors
    /// What `BPF_PROG_ATTACH` says: EINVAL for flags that the kernel does not know.
    pub fn try_new(cgroup: &Path, hook: Hook, name: &str, code: &[u64], flags: u32) -> io::Result<Attached> {
        let (cgroup, program) = (File::open(cgroup)?, load(hook, name, code));
        call(BPF_PROG_ATTACH, &cgroup, &program, hook, flags)?;
        Ok(Attached { cgroup, program, hook })
    }
}

fn call(command: i64, cgroup: &File, program: &OwnedFd, hook: Hook, flags: u32) -> io::Result<()> {
    let (cgroup, program) = (cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let done = bpf(command, &mut [cgroup, program, hook.attach, flags, 0]) == 0;
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Drop for Attached {
    fn drop(&mut self) {
        call(BPF_PROG_DETACH, &self.cgroup, &self.program, self.hook, 0).expect("detach a program");
    }
}

/// Whether the kernel knows [`PREORDER`]. It is tried on this cgroup.
#[must_use]
pub fn has_preorder(cgroup: &Path) -> bool {
    Attached::try_new(cgroup, CONNECT4, "tried", &answer(1), PREORDER).is_ok()
}

/// Links a program of [`SK_LOOKUP`] to a network namespace, until the link is dropped.
///
/// # Panics
/// The kernel refuses it.
#[must_use]
pub fn in_namespace(netns: &Path, name: &str, code: &[u64]) -> OwnedFd {
    let netns = File::open(netns).expect("a network namespace");
    let program = load(SK_LOOKUP, name, code);
    let mut attr = [program.as_raw_fd() as u32, netns.as_raw_fd() as u32, SK_LOOKUP.attach, 0];
    descriptor(bpf(BPF_LINK_CREATE, &mut attr), "link to a network namespace")
}
