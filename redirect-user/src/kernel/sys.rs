//! Raw bpf(2) and socket calls for what aya does not offer: opening and pinning links of pinned programs without
//! reading the kernel's BTF, replacing the program of a link, loading prepared instructions.
//!
//! One function per command, one error type that names it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::kernel::hook::Hook;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed: {source}")]
pub struct SyscallError {
    /// Which call.
    pub call: &'static str,
    /// Why.
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

/// Commands of bpf(2), `enum bpf_cmd` of `linux/bpf.h`.
mod command {
    pub(super) const MAP_DELETE_ELEM: i32 = 3;
    pub(super) const PROG_LOAD: i32 = 5;
    pub(super) const OBJ_PIN: i32 = 6;
    pub(super) const OBJ_GET: i32 = 7;
    pub(super) const PROG_GET_FD_BY_ID: i32 = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub(super) const PROG_QUERY: i32 = 16;
    pub(super) const MAP_LOOKUP_BATCH: i32 = 24;
    pub(super) const LINK_CREATE: i32 = 28;
    pub(super) const LINK_UPDATE: i32 = 29;
    pub(super) const LINK_DETACH: i32 = 34;
}

/// Runs one command of bpf(2) on an attribute struct and returns its non-negative result.
///
/// `BPF_PROG_LOAD` answers EAGAIN when a signal is pending while the verifier works (`signal_pending()` in `do_check()`,
/// since Linux 5.0); that is tried again a few times.
fn bpf<A>(command: i32, call: &'static str, attr: &mut A) -> Result<i32> {
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match bpf_once(command, call, attr) {
            Err(error) if command == command::PROG_LOAD && error.errno() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    bpf_once(command, call, attr)
}

fn bpf_once<A>(command: i32, call: &'static str, attr: &mut A) -> Result<i32> {
    // SAFETY: `attr` is a repr(C) prefix of `union bpf_attr`, its size is passed along, and pointers in it outlive the
    // call because every caller keeps what they point to in a local.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 {
        Err(SyscallError { call, source: io::Error::last_os_error() })
    } else {
        Ok(result as i32)
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: a command that makes a descriptor returned it, nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path, call: &'static str) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| SyscallError { call, source: io::Error::new(io::ErrorKind::InvalidInput, error) })
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned object.
///
/// # Errors
/// `BPF_OBJ_GET`: ENOENT when there is no such pin.
pub fn obj_get(path: &Path) -> Result<OwnedFd> {
    const CALL: &str = "BPF_OBJ_GET";
    let name = c_path(path, CALL)?;
    let mut attr = ObjAttr { pathname: name.as_ptr() as u64, ..ObjAttr::default() };
    bpf(command::OBJ_GET, CALL, &mut attr).map(owned)
}

/// Pins an object; it then lives as long as the pin.
///
/// # Errors
/// `BPF_OBJ_PIN`: EEXIST when the path is taken, EPERM outside a bpf file system.
pub fn obj_pin(fd: impl AsFd, path: &Path) -> Result<()> {
    const CALL: &str = "BPF_OBJ_PIN";
    let name = c_path(path, CALL)?;
    let mut attr = ObjAttr {
        pathname: name.as_ptr() as u64,
        bpf_fd: fd.as_fd().as_raw_fd() as u32,
        ..ObjAttr::default()
    };
    bpf(command::OBJ_PIN, CALL, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 2],
}

/// Links a program to a cgroup directory or a network namespace. A link to a cgroup is always one of several
/// (`BPF_F_ALLOW_MULTI`); it goes away with its last reference.
///
/// # Errors
/// `BPF_LINK_CREATE`: EPERM when an ancestor is attached exclusively, EBUSY when this program is already linked there.
pub fn link_create(program: impl AsFd, target: impl AsFd, hook: Hook) -> Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        target_fd: target.as_fd().as_raw_fd() as u32,
        attach_type: hook.attach_type(),
        ..LinkCreateAttr::default()
    };
    bpf(command::LINK_CREATE, "BPF_LINK_CREATE", &mut attr).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link in one step, if it still runs `old`.
///
/// # Errors
/// `BPF_LINK_UPDATE`: ENOLINK when the cgroup is gone, EPERM when somebody else replaced the program meanwhile.
pub fn link_update(link: impl AsFd, new: impl AsFd, old: impl AsFd) -> Result<()> {
    const BPF_F_REPLACE: u32 = 1 << 2;
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_fd().as_raw_fd() as u32,
        new_prog_fd: new.as_fd().as_raw_fd() as u32,
        flags: BPF_F_REPLACE,
        old_prog_fd: old.as_fd().as_raw_fd() as u32,
    };
    bpf(command::LINK_UPDATE, "BPF_LINK_UPDATE", &mut attr).map(drop)
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// Ends a link at once. When its last reference goes instead, the kernel ends it a little later, from a work queue
/// (`bpf_link_put()`), and until then a program that is linked anew runs twice.
///
/// # Errors
/// `BPF_LINK_DETACH` (Linux 5.9).
pub fn link_detach(link: impl AsFd) -> Result<()> {
    let mut attr = LinkDetachAttr { link_fd: link.as_fd().as_raw_fd() as u32 };
    bpf(command::LINK_DETACH, "BPF_LINK_DETACH", &mut attr).map(drop)
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

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info`: the head and the part for cgroup and netns links.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    target: [u32; 4],
    rest: [u64; 8],
}

/// Asks about a link.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn link_info(link: impl AsFd) -> Result<LinkInfo> {
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    let mut raw = RawLinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: link.as_fd().as_raw_fd() as u32,
        info_len: size_of::<RawLinkInfo>() as u32,
        info: (&raw mut raw) as u64,
    };
    bpf(command::OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", &mut attr)?;
    let target = if raw.kind == BPF_LINK_TYPE_CGROUP {
        u64::from(raw.target[0]) | u64::from(raw.target[1]) << 32
    } else {
        u64::from(raw.target[0])
    };
    Ok(LinkInfo { id: raw.id, program_id: raw.prog_id, target })
}

/// The id of a program.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_id(program: impl AsFd) -> Result<u32> {
    // `struct bpf_prog_info` begins with type and id.
    let mut raw = [0_u32; 2];
    let mut attr = InfoAttr {
        bpf_fd: program.as_fd().as_raw_fd() as u32,
        info_len: size_of_val(&raw) as u32,
        info: (&raw mut raw) as u64,
    };
    bpf(command::OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", &mut attr)?;
    Ok(raw[1])
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
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
        let mut attr = BatchAttr {
            in_batch: if started { (&raw const position) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: AT_ONCE as u32,
            map_fd: map.as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        let result = bpf(command::MAP_LOOKUP_BATCH, CALL, &mut attr);
        let end = matches!(&result, Err(error) if error.errno() == Some(libc::ENOENT));
        if !end {
            result?;
        }
        // SAFETY: the kernel has written `count` keys, no more than the capacity; any bytes are a valid `Pod`.
        unsafe { keys.set_len((attr.count as usize).min(AT_ONCE)) };
        found.extend_from_slice(&keys);
        if end {
            return Ok(found);
        }
        (position, started) = (next, true);
    }
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes a key from a map; fine when it is not there.
///
/// # Errors
/// `BPF_MAP_DELETE_ELEM`.
pub fn map_delete<K: aya::Pod>(map: impl AsFd, key: &K) -> Result<()> {
    let mut attr = ElemAttr {
        map_fd: map.as_fd().as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        ..ElemAttr::default()
    };
    match bpf(command::MAP_DELETE_ELEM, "BPF_MAP_DELETE_ELEM", &mut attr) {
        Err(error) if error.errno() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Opens a loaded program by its id.
///
/// # Errors
/// `BPF_PROG_GET_FD_BY_ID`: ENOENT when there is no such program any more.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    // `prog_id`, `next_id`, `open_flags`
    let mut attr = [id, 0, 0];
    bpf(command::PROG_GET_FD_BY_ID, "BPF_PROG_GET_FD_BY_ID", &mut attr).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a sk_lookup program from instructions of 8 bytes each.
///
/// # Errors
/// `BPF_PROG_LOAD`: the verifier's refusal, or EPERM without CAP_BPF and CAP_NET_ADMIN.
pub fn load_sk_lookup(instructions: &[u8], name: &str) -> Result<OwnedFd> {
    const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
    let mut attr = ProgLoadAttr {
        prog_type: BPF_PROG_TYPE_SK_LOOKUP,
        insn_cnt: (instructions.len() / 8) as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: Hook::Inbound.attach_type(),
        ..ProgLoadAttr::default()
    };
    let length = name.len().min(15);
    attr.prog_name[..length].copy_from_slice(&name.as_bytes()[..length]);
    bpf(command::PROG_LOAD, "BPF_PROG_LOAD", &mut attr).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The programs attached to a cgroup itself (not to its ancestors) at a hook, with the flags of the attachment:
/// 0 together with a program means exclusive, `BPF_F_ALLOW_OVERRIDE` (1), `BPF_F_ALLOW_MULTI` (2).
///
/// # Errors
/// `BPF_PROG_QUERY`.
pub fn cgroup_programs(cgroup: impl AsFd, hook: Hook) -> Result<(Vec<u32>, u32)> {
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: hook.attach_type(),
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    bpf(command::PROG_QUERY, "BPF_PROG_QUERY", &mut attr)?;
    Ok((ids[..attr.prog_cnt as usize].to_vec(), attr.attach_flags))
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
