//! Raw bpf(2) and socket calls for what aya does not offer: opening and pinning links of pinned programs
//! without reading the kernel's BTF, replacing the program of a link, loading prepared instructions.
//!
//! One function per command, one error type that names it. [`info`] asks about links and programs, [`maps`]
//! changes maps, [`sockets`] asks sockets. The structs are those that aya generates from `linux/bpf.h`.

mod info;
mod maps;
mod sockets;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};

use crate::kernel::hook::Hook;

pub use self::info::{
    LinkInfo, ProgramInfo, link_by_id, link_ids, link_info, program_by_id, program_id, program_info,
};
pub use self::maps::{RawMap, map_delete, map_entries, map_id, map_keys, map_name, map_sizes, map_update};
pub use self::sockets::{
    descriptor_of, is_listening, is_udp, netns_cookie, open_process, socket_cookie, socket_domain,
};

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed: {source}")]
pub struct SyscallError {
    /// Which call.
    pub call: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl SyscallError {
    /// The error number.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

type Result<T> = std::result::Result<T, SyscallError>;

/// A `union bpf_attr` of zeros: what a command does not use must be 0.
fn attr() -> bpf_attr {
    // SAFETY: the union's members are integers, and arrays and structs of integers.
    unsafe { std::mem::zeroed() }
}

/// Runs one command of bpf(2) and returns its non-negative result. (A kernel with a shorter union takes this
/// one as long as the rest is 0.)
///
/// `BPF_PROG_LOAD` answers EAGAIN when a signal is pending while the verifier works (`signal_pending()` in
/// `do_check()`, since Linux 5.0); that is tried again a few times.
fn bpf(command: bpf_cmd, call: &'static str, attr: &mut bpf_attr) -> Result<i32> {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match bpf_once(command, call, attr) {
            Err(error) if command == bpf_cmd::BPF_PROG_LOAD && error.errno() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    bpf_once(command, call, attr)
}

fn bpf_once(command: bpf_cmd, call: &'static str, attr: &mut bpf_attr) -> Result<i32> {
    // SAFETY: the size of `attr` is passed along, and pointers in it outlive the call because every caller
    // keeps what they point to in a local.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 {
        Err(SyscallError { call, source: io::Error::last_os_error() })
    } else {
        Ok(result as i32)
    }
}

/// A descriptor's number; the caller keeps the descriptor open until its call is over.
fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: a command that makes a descriptor returned it, and only this function has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path, call: &'static str) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| SyscallError { call, source: io::Error::new(io::ErrorKind::InvalidInput, error) })
}

/// Opens a pinned object.
///
/// # Errors
/// `BPF_OBJ_GET`: ENOENT when there is no such pin.
pub fn obj_get(path: &Path) -> Result<OwnedFd> {
    const CALL: &str = "BPF_OBJ_GET";
    let name = c_path(path, CALL)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, CALL, &mut attr).map(owned)
}

/// Pins an object; it then lives as long as the pin.
///
/// # Errors
/// `BPF_OBJ_PIN`: EEXIST when the path is taken, EPERM outside a bpf file system.
pub fn obj_pin(fd: impl AsFd, path: &Path) -> Result<()> {
    const CALL: &str = "BPF_OBJ_PIN";
    let name = c_path(path, CALL)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(&fd);
    bpf(bpf_cmd::BPF_OBJ_PIN, CALL, &mut attr).map(drop)
}

/// Links a program to a cgroup directory or a network namespace. A link to a cgroup is always one of several
/// (`BPF_F_ALLOW_MULTI`); it goes away with its last reference.
///
/// # Errors
/// `BPF_LINK_CREATE`: EPERM when an ancestor is attached exclusively, EBUSY when this program is already
/// linked there.
pub fn link_create(program: impl AsFd, target: impl AsFd, hook: Hook) -> Result<OwnedFd> {
    let mut attr = attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(&program);
    attr.link_create.__bindgen_anon_2.target_fd = raw(&target);
    attr.link_create.attach_type = hook.attach_type() as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, "BPF_LINK_CREATE", &mut attr).map(owned)
}

/// Replaces the program of a link in one step, if it still runs `old`.
///
/// # Errors
/// `BPF_LINK_UPDATE`: ENOLINK when the cgroup is gone, EPERM when somebody else replaced the program
/// meanwhile.
pub fn link_update(link: impl AsFd, new: impl AsFd, old: impl AsFd) -> Result<()> {
    const BPF_F_REPLACE: u32 = 1 << 2;
    let mut attr = attr();
    attr.link_update.link_fd = raw(&link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = raw(&new);
    attr.link_update.flags = BPF_F_REPLACE;
    attr.link_update.__bindgen_anon_2.old_prog_fd = raw(&old);
    bpf(bpf_cmd::BPF_LINK_UPDATE, "BPF_LINK_UPDATE", &mut attr).map(drop)
}

/// Ends a link at once. When its last reference goes instead, the kernel ends it a little later, from a work
/// queue (`bpf_link_put()`), and until then a program that is linked again runs twice.
///
/// # Errors
/// `BPF_LINK_DETACH` (Linux 5.9).
pub fn link_detach(link: impl AsFd) -> Result<()> {
    let mut attr = attr();
    attr.link_detach.link_fd = raw(&link);
    bpf(bpf_cmd::BPF_LINK_DETACH, "BPF_LINK_DETACH", &mut attr).map(drop)
}

/// Loads a sk_lookup program from instructions of 8 bytes each.
///
/// # Errors
/// `BPF_PROG_LOAD`: the verifier's refusal, or EPERM without CAP_BPF and CAP_NET_ADMIN.
pub fn load_sk_lookup(instructions: &[u8], name: &str) -> Result<OwnedFd> {
    let kind = (bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP as u32, bpf_attach_type::BPF_SK_LOOKUP as u32);
    load(kind, instructions, name)
}

/// Loads a program of a type and, where its type has several, for a type of attachment: the numbers of
/// `linux/bpf.h`.
///
/// # Errors
/// As [`load_sk_lookup`].
pub fn load((prog_type, attach_type): (u32, u32), instructions: &[u8], name: &str) -> Result<OwnedFd> {
    let mut program_name = [0; 16];
    for (to, from) in program_name[..15].iter_mut().zip(name.bytes()) {
        *to = from as core::ffi::c_char;
    }
    let mut attr = attr();
    attr.__bindgen_anon_3.prog_type = prog_type;
    attr.__bindgen_anon_3.insn_cnt = (instructions.len() / 8) as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"Dual MIT/GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.prog_name = program_name;
    attr.__bindgen_anon_3.expected_attach_type = attach_type;
    bpf(bpf_cmd::BPF_PROG_LOAD, "BPF_PROG_LOAD", &mut attr).map(owned)
}

/// The programs attached to a cgroup or a network namespace itself (not to a cgroup's ancestors) at a hook,
/// with the flags of the attachment: 0 together with a program means exclusive, `BPF_F_ALLOW_OVERRIDE` (1),
/// `BPF_F_ALLOW_MULTI` (2).
///
/// # Errors
/// `BPF_PROG_QUERY`.
pub fn programs_on(target: impl AsFd, hook: Hook) -> Result<(Vec<u32>, u32)> {
    // The kernel allows 64 (`BPF_CGROUP_MAX_PROGS`).
    let mut ids = [0_u32; 64];
    let (count, flags) = query(target, hook, 0, &mut ids)?;
    Ok((ids[..(count as usize).min(ids.len())].to_vec(), flags))
}

/// Whether any program runs for a cgroup at a hook, its own or an ancestor's: one question for the whole way
/// up (`BPF_F_QUERY_EFFECTIVE`, `__cgroup_bpf_query` in kernel/bpf/cgroup.c).
///
/// # Errors
/// `BPF_PROG_QUERY`.
pub fn runs_any(cgroup: impl AsFd, hook: Hook) -> Result<bool> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    Ok(query(cgroup, hook, BPF_F_QUERY_EFFECTIVE, &mut [])?.0 != 0)
}

/// The number of programs, and the flags of the attachment; the ids as far as there is room for them.
fn query(target: impl AsFd, hook: Hook, flags: u32, ids: &mut [u32]) -> Result<(u32, u32)> {
    let mut attr = attr();
    attr.query.__bindgen_anon_1.target_fd = raw(&target);
    attr.query.attach_type = hook.attach_type() as u32;
    attr.query.query_flags = flags;
    if !ids.is_empty() {
        attr.query.prog_ids = ids.as_mut_ptr() as u64;
        attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    }
    bpf(bpf_cmd::BPF_PROG_QUERY, "BPF_PROG_QUERY", &mut attr)?;
    // SAFETY: `query` is the member that this command uses, and its count is a plain integer.
    Ok(unsafe { (attr.query.__bindgen_anon_2.prog_cnt, attr.query.attach_flags) })
}

/// The programs that run for a cgroup at a hook, its ancestors' among them, in the order in which they run.
///
/// # Errors
/// `BPF_PROG_QUERY`.
pub fn effective_on(target: impl AsFd, hook: Hook) -> Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    let mut ids = [0_u32; 256];
    let mut attr = attr();
    attr.query.__bindgen_anon_1.target_fd = raw(&target);
    attr.query.attach_type = hook.attach_type() as u32;
    attr.query.query_flags = BPF_F_QUERY_EFFECTIVE;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, "BPF_PROG_QUERY", &mut attr)?;
    // SAFETY: `query` is the member that this command uses, and its count is a plain integer.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt };
    Ok(ids[..(count as usize).min(ids.len())].to_vec())
}

/// Why bpf(2) is refused to a process that may not load programs. The kernel's answer does not tell which: it
/// is EPERM without the capabilities, and EPERM or EACCES from others.
const FORBIDDEN: &str = "this process may not use bpf(2): CAP_BPF and CAP_NET_ADMIN are needed (CAP_SYS_ADMIN \
                         stands for the first), or a seccomp profile or a security module (SELinux, AppArmor) \
                         forbids it";

/// The same, where root is root of a user namespace only.
const ROOTLESS: &str = "this process is in a user namespace, as those of a rootless container runtime are: bpf(2) \
                        wants CAP_BPF and CAP_NET_ADMIN of the first one, which no process in another has; run the \
                        runtime as the machine's root";

/// What is said where bpf(2) is refused.
#[must_use]
pub fn why_forbidden() -> &'static str {
    if in_first_user_namespace() { FORBIDDEN } else { ROOTLESS }
}

/// As [`why_forbidden`], if bpf(2) is refused.
#[must_use]
pub fn forbidden() -> Option<&'static str> {
    (!may_use_bpf()).then(why_forbidden)
}

/// Whether this process is in the machine's own user namespace, which has a fixed number:
/// `PROC_USER_INIT_INO` of linux/proc_ns.h. Yes, where that cannot be seen.
#[must_use]
pub fn in_first_user_namespace() -> bool {
    const FIRST: u64 = 0xeffffffd;
    std::fs::metadata("/proc/self/ns/user").map_or(true, |metadata| metadata.ino() == FIRST)
}

/// Whether this process may load programs: the smallest one there is (`r0 = 1; exit`) is tried.
#[must_use]
pub fn may_use_bpf() -> bool {
    let program = [0xb7_u8, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    load_sk_lookup(&program, "probe").is_ok()
}
