//! What the kernel says of links and programs, found by descriptor or by id.

use std::os::fd::{AsFd, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_link_info, bpf_link_type, bpf_prog_info};

use super::{Result, attr, bpf, owned, raw};

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

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The ids of the maps that it uses.
    pub maps: Vec<u32>,
}

/// The id of a program.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_id(program: impl AsFd) -> Result<u32> {
    Ok(program_info(program)?.id)
}

/// Asks about a program.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_info(program: impl AsFd) -> Result<ProgramInfo> {
    // The kernel allows 64 maps for one program (`MAX_USED_MAPS`).
    let mut maps = [0_u32; 64];
    // SAFETY: integers and arrays of integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = maps.len() as u32;
    info.map_ids = maps.as_mut_ptr() as u64;
    object_info(program, &mut info)?;
    let maps = maps[..(info.nr_map_ids as usize).min(maps.len())].to_vec();
    Ok(ProgramInfo { id: info.id, name: text(&info.name), maps })
}

/// A name as the kernel keeps it, ended by a zero.
pub(super) fn text(name: &[core::ffi::c_char]) -> String {
    name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect()
}

pub(super) fn object_info<I>(object: impl AsFd, info: &mut I) -> Result<()> {
    let mut attr = attr();
    attr.info.bpf_fd = raw(&object);
    attr.info.info_len = size_of::<I>() as u32;
    attr.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD", &mut attr).map(drop)
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

/// The ids of all links of the machine.
///
/// # Errors
/// `BPF_LINK_GET_NEXT_ID`.
pub fn link_ids() -> Result<Vec<u32>> {
    const CALL: &str = "BPF_LINK_GET_NEXT_ID";
    let mut ids = Vec::new();
    let mut last = 0;
    loop {
        let mut attr = attr();
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = last;
        match bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, CALL, &mut attr) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(ids),
            other => other?,
        };
        // SAFETY: the member of the union that this command writes.
        last = unsafe { attr.__bindgen_anon_6.next_id };
        ids.push(last);
    }
}

/// Opens a link by its id.
///
/// # Errors
/// `BPF_LINK_GET_FD_BY_ID`: ENOENT when there is no such link any more.
pub fn link_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, "BPF_LINK_GET_FD_BY_ID", &mut attr).map(owned)
}
