//! The kernel programs: the embedded object, and the few instructions that every pod has of its own.

use std::os::fd::{AsRawFd as _, OwnedFd};

use redirect_common::{Entered, PREFIX4, PREFIX4_BITS, PREFIX6, STEERED};

use crate::kernel::hook::Hook;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;

/// The ELF object that the loader parses; aligned as it demands.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect-ebpf.o"));

/// Loads the program that is linked to a pod's namespace: it leaves the pod's cookie in ENTERED and goes on
/// in `inbound`.
///
/// The verifier walks 43 instructions here instead of all of `inbound` for every pod.
///
/// # Errors
/// A map is not pinned, or the kernel refuses the program.
pub(crate) fn load_stub(node: &Node, cookie: u64) -> Result<OwnedFd, SyscallError> {
    let entered = sys::obj_get(&pins::current(node).map("ENTERED"))?;
    let inbound = sys::obj_get(&pins::current(node).map("INBOUND"))?;
    sys::load_sk_lookup(&stub(cookie, entered.as_raw_fd(), inbound.as_raw_fd()), "inbound")
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
    const MAPS: [&str; 6] = ["PODS", "ENTERED", "ORIGIN", "DESTINATIONS", "HANDOFF", "CLIENTS"];
    let info = sys::program_by_id(program).and_then(sys::program_info);
    info.is_ok_and(|info| {
        let named = |id: &u32| sys::map_name(*id).is_ok_and(|name| MAPS.contains(&name.as_str()));
        info.name == hook.name() && info.maps.iter().any(named)
    })
}

/// The instructions, 8 bytes each: code, registers (source in the upper half), offset, immediate;
/// `linux/bpf.h` and Documentation/bpf/standardization/instruction-set.rst have the numbers.
///
/// A SYN over `lo` goes on only if it is steered ([`redirect_common::is_steered`]); for any other the
/// kernel's own look-up is right. The look-up is left in ENTERED above the one that it has interrupted
/// ([`redirect_common::Entered`]).
fn stub(cookie: u64, entered: i32, inbound: i32) -> Vec<u8> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    const TAIL_CALL: i32 = 12;
    const GET_CURRENT_TASK: i32 = 35;
    // `BPF_XCHG`, since Linux 5.12.
    const XCHG: i32 = 0xe1;
    // Offsets in `struct bpf_sk_lookup`; the index of `lo` in every network namespace.
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    const LOCAL_IP6: i16 = 44;
    const INTERFACE: i16 = 64;
    const LO: i32 = 1;
    // The context has addresses in network byte order.
    let word = |number: u32| number.to_be() as i32;
    let (low, high) = (|number: u64| number as i32, |number: u64| (number >> 32) as i32);
    let (mask4, upper4) = (word(!0 << (32 - PREFIX4_BITS) | STEERED), word(PREFIX4 | STEERED));
    let mut code = Vec::new();
    let mut insn = |op: u8, dst: u8, src: u8, offset: i16, immediate: i32| {
        code.extend([op, dst | src << 4]);
        code.extend(offset.to_ne_bytes());
        code.extend(immediate.to_ne_bytes());
    };
    // 0: r6 = the context. What is not TCP over lo goes on, at 19.
    insn(0xbf, 6, 1, 0, 0);
    insn(0x61, 1, 6, PROTOCOL, 0);
    insn(0x55, 1, 0, 16, libc::IPPROTO_TCP);
    insn(0x61, 1, 6, INTERFACE, 0);
    insn(0x55, 1, 0, 14, LO);
    // 5: so does an IPv4 address of the upper half. (Of the other family's fields each is 0.)
    insn(0x61, 1, 6, LOCAL_IP4, 0);
    insn(0x54, 1, 0, 0, mask4);
    insn(0x16, 1, 0, 11, upper4);
    // 8: no address of the IPv6 prefix: nothing to do, at 17.
    insn(0x61, 1, 6, LOCAL_IP6, 0);
    insn(0x56, 1, 0, 7, word(PREFIX6[0]));
    insn(0x61, 1, 6, LOCAL_IP6 + 4, 0);
    insn(0x56, 1, 0, 5, word(PREFIX6[1]));
    // 12: one that is no slot's, or one of the upper half, goes on.
    insn(0x61, 1, 6, LOCAL_IP6 + 8, 0);
    insn(0x55, 1, 0, 5, 0);
    insn(0x61, 1, 6, LOCAL_IP6 + 12, 0);
    insn(0x54, 1, 0, 0, word(STEERED));
    insn(0x55, 1, 0, 2, 0);
    // 17: return SK_PASS
    insn(0xb7, 0, 0, 0, 1);
    insn(0x95, 0, 0, 0, 0);
    // 19: r7 = bpf_get_current_task() * SPREAD ^ cookie
    insn(0x85, 0, 0, 0, GET_CURRENT_TASK);
    insn(0xbf, 7, 0, 0, 0);
    insn(0x18, 1, 0, 0, low(Entered::SPREAD));
    insn(0, 0, 0, 0, high(Entered::SPREAD));
    insn(0x2f, 7, 1, 0, 0);
    insn(0x18, 1, 0, 0, low(cookie));
    insn(0, 0, 0, 0, high(cookie));
    insn(0xaf, 7, 1, 0, 0);
    // 27: r0 = bpf_map_lookup_elem(ENTERED, 0), at 41 if it is null; the 1 marks a map's descriptor
    insn(0x62, 10, 0, -4, 0);
    insn(0x18, 1, 1, 0, entered);
    insn(0, 0, 0, 0, 0);
    insn(0xbf, 2, 10, 0, 0);
    insn(0x07, 2, 0, 0, -4);
    insn(0x85, 0, 0, 0, MAP_LOOKUP_ELEM);
    insn(0x15, 0, 0, 7, 0);
    // 34: exchanged at once for what is there, which goes below
    insn(0xdb, 0, 7, 0, XCHG);
    insn(0x7b, 0, 7, 8, 0);
    // 36: bpf_tail_call(r6, INBOUND, 0)
    insn(0xbf, 1, 6, 0, 0);
    insn(0x18, 2, 1, 0, inbound);
    insn(0, 0, 0, 0, 0);
    insn(0xb7, 3, 0, 0, 0);
    insn(0x85, 0, 0, 0, TAIL_CALL);
    // 41: nowhere to go on, the node is not installed. return SK_DROP, closed.
    insn(0xb7, 0, 0, 0, 0);
    insn(0x95, 0, 0, 0, 0);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_holds_the_cookie_and_every_jump_ends_where_it_should() {
        let code = stub(0x1122_3344_5566_7788, 7, 9);
        let at = |slot: usize| &code[slot * 8..slot * 8 + 8];
        assert_eq!(at(24)[4..], 0x5566_7788_u32.to_ne_bytes());
        assert_eq!(at(25)[4..], 0x1122_3344_u32.to_ne_bytes());
        let target = |slot: usize| slot + 1 + i16::from_ne_bytes([at(slot)[2], at(slot)[3]]) as usize;
        for on in [2, 4, 7, 13, 16] {
            assert_eq!(target(on), 19, "{on}");
        }
        assert_eq!((target(9), target(11), target(33)), (17, 17, 41));
        assert_eq!(code.len(), 43 * 8);
    }
}
