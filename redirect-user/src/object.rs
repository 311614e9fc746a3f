//! The kernel programs, embedded: the whole object for the installation, and `inbound` as prepared instructions.

use std::os::fd::{AsRawFd as _, OwnedFd};

use redirect_common::COOKIE_PLACEHOLDER;

use crate::node::Node;
use crate::pins;
use crate::sys::{self, SyscallError};

/// The ELF object that the loader parses; aligned as it demands.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect-ebpf.o"));

/// `inbound` as the build script prepared it.
static INBOUND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inbound.insns"));

/// The maps that the instructions refer to by index.
static INBOUND_MAPS: &[&str] = include!(concat!(env!("OUT_DIR"), "/inbound_maps.rs"));

/// `BPF_LD | BPF_IMM | BPF_DW`, the only instruction of two slots.
const LD_IMM64: u8 = 0x18;
/// Bytes per instruction slot: code, registers, offset (2), immediate (4).
const SLOT: usize = 8;

/// Loads an instance of `inbound` for one pod.
///
/// # Errors
/// A map is not pinned, or the kernel refuses the program.
pub(crate) fn load_inbound(node: &Node, cookie: u64) -> Result<OwnedFd, SyscallError> {
    let used = used_maps(INBOUND);
    let mut fds: Vec<Option<OwnedFd>> = INBOUND_MAPS.iter().map(|_| None).collect();
    for index in used {
        fds[index] = Some(sys::obj_get(&pins::map(node, INBOUND_MAPS[index]))?);
    }
    let fd_of = |index: usize| fds[index].as_ref().map_or(-1, OwnedFd::as_raw_fd);
    sys::load_sk_lookup(&instance(INBOUND, cookie, fd_of), "inbound")
}

/// Indices of the maps that the program refers to.
fn used_maps(program: &[u8]) -> std::collections::BTreeSet<usize> {
    wide_loads(program)
        .filter(|at| refers_to_map(program, *at))
        .map(|at| immediate(program, at) as usize)
        .collect()
}

/// Offsets of the two-slot loads.
fn wide_loads(program: &[u8]) -> impl Iterator<Item = usize> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < program.len() {
            let here = at;
            let wide = program[at] == LD_IMM64;
            at += if wide { 2 * SLOT } else { SLOT };
            if wide {
                return Some(here);
            }
        }
        None
    })
}

/// Whether the source register says `BPF_PSEUDO_MAP_FD` (1) or `BPF_PSEUDO_MAP_VALUE` (2).
fn refers_to_map(program: &[u8], at: usize) -> bool {
    matches!(program[at + 1] >> 4, 1 | 2)
}

fn immediate(program: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([program[at + 4], program[at + 5], program[at + 6], program[at + 7]])
}

/// The program with file descriptors for map indices and the pod's cookie for the placeholder.
fn instance(template: &[u8], cookie: u64, fd_of: impl Fn(usize) -> i32) -> Vec<u8> {
    let mut program = template.to_vec();
    for at in wide_loads(template) {
        let mut set = |slot: usize, value: u32| {
            program[at + slot * SLOT + 4..at + (slot + 1) * SLOT].copy_from_slice(&value.to_ne_bytes());
        };
        let low = immediate(template, at);
        let high = immediate(template, at + SLOT);
        if refers_to_map(template, at) {
            set(0, fd_of(low as usize) as u32);
        } else if u64::from(low) | u64::from(high) << 32 == COOKIE_PLACEHOLDER {
            set(0, cookie as u32);
            set(1, (cookie >> 32) as u32);
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_program_has_one_placeholder_and_only_known_maps() {
        let placeholders = wide_loads(INBOUND)
            .filter(|at| !refers_to_map(INBOUND, *at))
            .map(|at| u64::from(immediate(INBOUND, at)) | u64::from(immediate(INBOUND, at + SLOT)) << 32)
            .filter(|value| *value == COOKIE_PLACEHOLDER)
            .count();
        assert_eq!(placeholders, 1);
        let used: Vec<_> = used_maps(INBOUND).into_iter().map(|index| INBOUND_MAPS[index]).collect();
        for map in ["PODS", "LISTENERS", "STATS", "SETS"] {
            assert!(used.contains(&map), "{map} not in {used:?}");
        }
    }

    #[test]
    fn an_instance_names_its_pod() {
        let program = instance(INBOUND, 0x1122_3344_5566_7788, |index| 100 + index as i32);
        let values: Vec<_> = wide_loads(&program)
            .filter(|at| !refers_to_map(&program, *at))
            .map(|at| u64::from(immediate(&program, at)) | u64::from(immediate(&program, at + SLOT)) << 32)
            .collect();
        assert!(values.contains(&0x1122_3344_5566_7788));
        assert!(used_maps(&program).into_iter().all(|fd| fd >= 100));
    }
}
