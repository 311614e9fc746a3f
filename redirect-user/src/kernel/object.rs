//! The kernel programs: the embedded object, and the few instructions that every pod has of its own.

use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::kernel::hook::Hook;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;

/// The ELF object that the loader parses; aligned as it demands.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect-ebpf.o"));

/// Loads the program that is linked to a pod's namespace: it leaves the pod's cookie in ENTERED and goes on
/// in `inbound`.
///
/// The verifier walks 31 instructions here instead of all of `inbound` for every pod.
///
/// # Errors
/// A map is not pinned, or the kernel refuses the program.
pub(crate) fn load_stub(node: &Node, cookie: u64) -> Result<OwnedFd, SyscallError> {
    let entered = sys::obj_get(&pins::current(node).map("ENTERED"))?;
    let inbound = sys::obj_get(&pins::current(node).map("INBOUND"))?;
    sys::load_sk_lookup(&entry(cookie, entered.as_raw_fd(), inbound.as_raw_fd()), "inbound")
}

/// Whether a pod's own program goes on in the programs that are installed now.
///
/// # Errors
/// A map is not pinned, or the program cannot be asked.
pub(crate) fn leads_here(node: &Node, entry: &OwnedFd) -> Result<bool, SyscallError> {
    let inbound = sys::map_id(sys::obj_get(&pins::current(node).map("INBOUND"))?)?;
    Ok(sys::program_info(entry)?.maps.contains(&inbound))
}

/// Whether a loaded program is one of ours for this hook, of whichever version or installation: by its name,
/// and by a map that it uses.
pub(crate) fn is_ours(program: u32, hook: Hook) -> bool {
    const MAPS: [&str; 5] = ["PODS", "ENTERED", "ORIGIN", "DESTINATIONS", "HANDOFF"];
    let info = sys::program_by_id(program).and_then(sys::program_info);
    info.is_ok_and(|info| {
        let named = |id: &u32| sys::map_name(*id).is_ok_and(|name| MAPS.contains(&name.as_str()));
        info.name == hook.name() && info.maps.iter().any(named)
    })
}

/// The instructions, 8 bytes each: code, registers (source in the upper half), offset, immediate;
/// `linux/bpf.h` and Documentation/bpf/standardization/instruction-set.rst have the numbers.
///
/// A look-up of sock_diag runs in a process and may be interrupted by a packet's, which then runs as the same
/// task. So what the task has in ENTERED already is kept below ([`redirect_common::Entered`]).
fn entry(cookie: u64, entered: i32, inbound: i32) -> Vec<u8> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    const MAP_UPDATE_ELEM: i32 = 2;
    const TAIL_CALL: i32 = 12;
    const GET_CURRENT_TASK: i32 = 35;
    let mut code = Vec::new();
    let mut insn = |op: u8, dst: u8, src: u8, offset: i16, immediate: i32| {
        code.extend([op, dst | src << 4]);
        code.extend(offset.to_ne_bytes());
        code.extend(immediate.to_ne_bytes());
    };
    // r6 = the context
    insn(0xbf, 6, 1, 0, 0);
    // *(u64 *)(r10 - 8) = bpf_get_current_task(), the key in ENTERED
    insn(0x85, 0, 0, 0, GET_CURRENT_TASK);
    insn(0x7b, 10, 0, -8, 0);
    // at r10 - 24 the value: the cookie, and nothing below it
    insn(0x18, 1, 0, 0, cookie as i32);
    insn(0, 0, 0, 0, (cookie >> 32) as i32);
    insn(0x7b, 10, 1, -24, 0);
    insn(0x7a, 10, 0, -16, 0);
    // r0 = bpf_map_lookup_elem(ENTERED, r10 - 8); the 1 marks the immediate as a map's descriptor
    insn(0x18, 1, 1, 0, entered);
    insn(0, 0, 0, 0, 0);
    insn(0xbf, 2, 10, 0, 0);
    insn(0x07, 2, 0, 0, -8);
    insn(0x85, 0, 0, 0, MAP_LOOKUP_ELEM);
    // if r0 is not null, its cookie goes below ours
    insn(0x15, 0, 0, 2, 0);
    insn(0x79, 1, 0, 0, 0);
    insn(0x7b, 10, 1, -16, 0);
    // r0 = bpf_map_update_elem(ENTERED, r10 - 8, r10 - 24, 0); if it fails go to the end
    insn(0x18, 1, 1, 0, entered);
    insn(0, 0, 0, 0, 0);
    insn(0xbf, 2, 10, 0, 0);
    insn(0x07, 2, 0, 0, -8);
    insn(0xbf, 3, 10, 0, 0);
    insn(0x07, 3, 0, 0, -24);
    insn(0xb7, 4, 0, 0, 0);
    insn(0x85, 0, 0, 0, MAP_UPDATE_ELEM);
    insn(0x55, 0, 0, 5, 0);
    // bpf_tail_call(r6, INBOUND, 0)
    insn(0xbf, 1, 6, 0, 0);
    insn(0x18, 2, 1, 0, inbound);
    insn(0, 0, 0, 0, 0);
    insn(0xb7, 3, 0, 0, 0);
    insn(0x85, 0, 0, 0, TAIL_CALL);
    // Nowhere to go on: the node is not installed. return SK_DROP, closed.
    insn(0xb7, 0, 0, 0, 0);
    insn(0x95, 0, 0, 0, 0);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_holds_the_cookie_and_jumps_to_its_end() {
        let code = entry(0x1122_3344_5566_7788, 7, 9);
        assert_eq!(code.len() % 8, 0);
        let at = |slot: usize| &code[slot * 8..slot * 8 + 8];
        assert_eq!(at(3)[4..], 0x5566_7788_u32.to_ne_bytes());
        assert_eq!(at(4)[4..], 0x1122_3344_u32.to_ne_bytes());
        // The jump at slot 23 skips 5 slots: to `r0 = 0` at slot 29, the last but one.
        assert_eq!((at(23)[0], at(29)[0], code.len() / 8), (0x55, 0xb7, 31));
    }
}
