//! Raw bpf(2) and socket calls for what aya does not offer: opening and pinning links of pinned programs
//! without reading the kernel's BTF, replacing the program of a link, loading prepared instructions.
//!
//! One function per command, one error type that names it. The structs are those that aya generates from
//! `linux/bpf.h`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_prog_info, bpf_prog_type,
};

use crate::kernel::hook::Hook;

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

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// The program that it runs.
    pub program_id: u32,
    /// The cgroup's id, or the inode of the network namespace; 0 when the target is gone.
    pub target: u64,
}

/// Asks about a link.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn link_info(link: impl AsFd) -> Result<LinkInfo> {
    // SAFETY: integers, and unions of integers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    object_info(link, &mut info)?;
    let target = if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: the link's type says which member of the union the kernel wrote.
        unsafe { info.__bindgen_anon_1.cgroup.cgroup_id }
    } else {
        // SAFETY: we make no links but to cgroups and network namespaces.
        u64::from(unsafe { info.__bindgen_anon_1.netns.netns_ino })
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, target })
}

/// The id of a program.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_id(program: impl AsFd) -> Result<u32> {
    // SAFETY: integers and arrays of integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    object_info(program, &mut info)?;
    Ok(info.id)
}

fn object_info<I>(object: impl AsFd, info: &mut I) -> Result<()> {
    let mut attr = attr();
    attr.info.bpf_fd = raw(&object);
    attr.info.info_len = size_of::<I>() as u32;
    attr.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", &mut attr).map(drop)
}

/// All keys of a hash map, some thousand per call. `K` and `V` are the map's key and value types.
///
/// # Errors
/// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6 for hash maps).
pub fn map_keys<K: aya::Pod, V: aya::Pod>(map: impl AsFd) -> Result<Vec<K>> {
    // More than a bucket of the map will ever hold, or the kernel answers ENOSPC.
    const AT_ONCE: usize = 4096;
    const CALL: &str = "BPF_MAP_LOOKUP_BATCH";
    let mut found = Vec::new();
    let mut keys: Vec<K> = Vec::with_capacity(AT_ONCE);
    let mut values: Vec<V> = Vec::with_capacity(AT_ONCE);
    let (mut position, mut next) = (0_u32, 0_u32);
    let mut started = false;
    loop {
        let mut attr = attr();
        attr.batch.in_batch = if started { (&raw const position) as u64 } else { 0 };
        attr.batch.out_batch = (&raw mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = AT_ONCE as u32;
        attr.batch.map_fd = raw(&map);
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, CALL, &mut attr);
        let end = matches!(&result, Err(error) if error.errno() == Some(libc::ENOENT));
        if !end {
            result?;
        }
        // SAFETY: the kernel has written `count` keys, no more than the capacity; any bytes are a valid
        // `Pod`. `batch` is the member of the union that this command uses.
        unsafe { keys.set_len((attr.batch.count as usize).min(AT_ONCE)) };
        found.extend_from_slice(&keys);
        if end {
            return Ok(found);
        }
        (position, started) = (next, true);
    }
}

/// Removes a key from a map; fine when it is not there.
///
/// # Errors
/// `BPF_MAP_DELETE_ELEM`.
pub fn map_delete<K: aya::Pod>(map: impl AsFd, key: &K) -> Result<()> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(&map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, "BPF_MAP_DELETE_ELEM", &mut attr) {
        Err(error) if error.errno() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Opens a loaded program by its id.
///
/// # Errors
/// `BPF_PROG_GET_FD_BY_ID`: ENOENT when there is no such program any more.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, "BPF_PROG_GET_FD_BY_ID", &mut attr).map(owned)
}

/// Loads a sk_lookup program from instructions of 8 bytes each.
///
/// # Errors
/// `BPF_PROG_LOAD`: the verifier's refusal, or EPERM without CAP_BPF and CAP_NET_ADMIN.
pub fn load_sk_lookup(instructions: &[u8], name: &str) -> Result<OwnedFd> {
    let mut program_name = [0; 16];
    for (to, from) in program_name[..15].iter_mut().zip(name.bytes()) {
        *to = from as core::ffi::c_char;
    }
    let mut attr = attr();
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP as u32;
    attr.__bindgen_anon_3.insn_cnt = (instructions.len() / 8) as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"Dual MIT/GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.prog_name = program_name;
    attr.__bindgen_anon_3.expected_attach_type = bpf_attach_type::BPF_SK_LOOKUP as u32;
    bpf(bpf_cmd::BPF_PROG_LOAD, "BPF_PROG_LOAD", &mut attr).map(owned)
}

/// The programs attached to a cgroup itself (not to its ancestors) at a hook, with the flags of the
/// attachment: 0 together with a program means exclusive, `BPF_F_ALLOW_OVERRIDE` (1), `BPF_F_ALLOW_MULTI`
/// (2).
///
/// # Errors
/// `BPF_PROG_QUERY`.
pub fn cgroup_programs(cgroup: impl AsFd, hook: Hook) -> Result<(Vec<u32>, u32)> {
    // The kernel allows 64 (`BPF_CGROUP_MAX_PROGS`).
    let mut ids = [0_u32; 64];
    let mut attr = attr();
    attr.query.__bindgen_anon_1.target_fd = raw(&cgroup);
    attr.query.attach_type = hook.attach_type() as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, "BPF_PROG_QUERY", &mut attr)?;
    // SAFETY: `query` is the member that this command uses, and its count is a plain integer.
    let (count, flags) = unsafe { (attr.query.__bindgen_anon_2.prog_cnt, attr.query.attach_flags) };
    Ok((ids[..(count as usize).min(ids.len())].to_vec(), flags))
}

/// The cookie of a socket's network namespace; never reused within a boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// getsockopt(2).
pub fn netns_cookie(socket: impl AsFd) -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length point to locals of the right sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(SyscallError { call: "getsockopt(SO_NETNS_COOKIE)", source: io::Error::last_os_error() })
    }
}

/// Whether this process may load programs: the smallest one there is (`r0 = 1; exit`) is tried.
#[must_use]
pub fn may_use_bpf() -> bool {
    let program = [0xb7_u8, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    load_sk_lookup(&program, "probe").is_ok()
}
