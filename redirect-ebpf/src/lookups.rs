//! The kernel looks for a socket: what the pod's own program and the guard leave for `inbound`, which runs in
//! the same look-up.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use redirect_common::{Asking, Entered, PodConfig};

use crate::maps;

/// The look-ups under way on this CPU, and the pods that they are for. Written by the program in the pod's
/// namespace, taken by `inbound` right after it. Others come in between where a process looks up (sock_diag,
/// `connect` for a sidecar that it does not know yet), and with PREEMPT_RT. So each is written and taken at
/// once, is known to its own task only, and puts back what it has found. One that does not find itself drops
/// the packet.
#[map]
static ENTERED: PerCpuArray<Entered> = PerCpuArray::with_max_entries(1, 0);

/// What the guard asks the kernel on this CPU: then `inbound` answers without deciding again, and counts
/// nothing. Written by the guard around its question. With PREEMPT_RT two may ask on one CPU; then a packet
/// may be counted by both, and is decided as without.
#[map]
static ASKING: PerCpuArray<Asking> = PerCpuArray::with_max_entries(1, 0);

/// The task that runs, as a number that no other task has at the same time. (In a softirq it is the
/// interrupted one.)
#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper takes no argument; what it returns is only compared.
    unsafe { bpf_get_current_task() }
}

/// The pod that this look-up is for, which the pod's own program left, and its cookie. Asked once in a run.
/// `None`: others came in between, and did not put it back; drop the packet.
#[inline(always)]
pub(crate) fn take_entered() -> Option<(u64, &'static PodConfig)> {
    let entered = ENTERED.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's own. Volatile, so that each word is moved once, 8 bytes at a time.
    let (last, below, word) = unsafe {
        let last = &raw mut (*entered).last;
        (last, &raw mut (*entered).below, last.read_volatile())
    };
    let cookie = Entered::word(task(), word);
    let pod = maps::pod(cookie)?;
    // SAFETY: as above.
    unsafe {
        exchange(last, word, below.read_volatile());
        below.write_volatile(Entered::NONE);
    }
    Some((cookie, pod))
}

/// Replaces a word by another if it is still there: by now it may be another look-up's. (The kernel has the
/// instruction since Linux 5.12.)
///
/// # Safety
/// The address is that of a word in a map's value, which is aligned.
#[inline(always)]
unsafe fn exchange(at: *mut u64, old: u64, new: u64) {
    // SAFETY: the instruction writes that word, and r0.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) at, in(reg) new, inout("r0") old => _);
    }
    // Clippy looks at this crate as if for this machine, which has no r0.
    #[cfg(not(target_arch = "bpf"))]
    let _ = (at, old, new);
}

/// The guard asks on this CPU, with the port of the listener that is to get the packet, or 0 for none.
#[inline(always)]
pub(crate) fn asking<T>(port: u32, ask: impl FnOnce() -> T) -> T {
    set_asking(Asking { task: task(), port: port.into() });
    let answer = ask();
    set_asking(Asking { task: 0, port: 0 });
    answer
}

#[inline(always)]
fn set_asking(value: Asking) {
    if let Some(asking) = ASKING.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe { *asking = value };
    }
}

/// What the guard asks, if it is asking: the port of the listener that is to get the packet, 0 for none.
#[inline(always)]
pub(crate) fn question() -> Option<u32> {
    let asking = ASKING.get(0)?;
    (asking.task != 0 && asking.task == task()).then_some(asking.port as u32)
}
