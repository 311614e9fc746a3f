//! Programs of somebody else: the smallest there is, under any name, attached to a cgroup the old way.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_ATTACH: i64 = 8;
const BPF_PROG_DETACH: i64 = 9;
const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;

/// Attached so that nothing may be attached below.
pub(crate) const EXCLUSIVE: u32 = 0;
/// `BPF_F_ALLOW_MULTI`
pub(crate) const MULTI: u32 = 2;
/// `BPF_F_ALLOW_MULTI` and `BPF_F_PREORDER`
pub(crate) const PREORDER: u32 = 2 | 64;

fn bpf(command: i64, attr: &mut [u32]) -> i64 {
    // SAFETY: the attribute's size goes with it, and what it points to lives until the call is over.
    unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) }
}

/// Loads a program for `connect4` that lets everything pass: `r0 = 1; exit`.
pub(crate) fn pass_all(name: &str) -> OwnedFd {
    let code = [0xb7_u8, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let license = c"GPL";
    // The beginning of `union bpf_attr` of linux/bpf.h, in words of 32 bits.
    let mut attr = [0_u32; 18];
    let pointer = |words: &mut [u32], pointer: u64| {
        words.copy_from_slice(&[pointer as u32, (pointer >> 32) as u32]);
    };
    attr[0] = CGROUP_SOCK_ADDR;
    attr[1] = 2;
    pointer(&mut attr[2..4], code.as_ptr() as u64);
    pointer(&mut attr[4..6], license.as_ptr() as u64);
    let mut bytes = [0; 16];
    bytes[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    for (word, chunk) in attr[12..16].iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().expect("four bytes"));
    }
    attr[17] = INET4_CONNECT;
    let fd = bpf(BPF_PROG_LOAD, &mut attr);
    assert!(fd >= 0, "load a program: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

/// Such a program on a cgroup. It is detached at the end.
pub(crate) struct Attached {
    cgroup: File,
    program: OwnedFd,
}

impl Attached {
    pub(crate) fn new(cgroup: &Path, name: &str, flags: u32) -> Attached {
        let attached = Attached { cgroup: File::open(cgroup).expect("a cgroup"), program: pass_all(name) };
        assert!(attached.call(BPF_PROG_ATTACH, flags) == 0, "attach: {}", std::io::Error::last_os_error());
        attached
    }

    fn call(&self, command: i64, flags: u32) -> i64 {
        bpf(
            command,
            &mut [self.cgroup.as_raw_fd() as u32, self.program.as_raw_fd() as u32, INET4_CONNECT, flags, 0],
        )
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        assert!(self.call(BPF_PROG_DETACH, 0) == 0, "detach: {}", std::io::Error::last_os_error());
    }
}
