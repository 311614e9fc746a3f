//! The kernel looks for a socket: what the pod's own program and the guard leave for `inbound`, which runs in
//! the same look-up.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use redirect_common::{Asking, Entered, LookUp};

/// The look-ups under way on this CPU, and the pods that they are for. Written by the program in the pod's
/// namespace, taken by `inbound` right after it. Others come in between where a process looks up (sock_diag,
/// `connect` for a sidecar that it does not know yet), and with PREEMPT_RT, so each has its task, and puts
/// back what it has found. One that does not find itself drops the packet.
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

/// The cookie of the pod that this look-up is for, which the pod's own program left. Asked once in a run.
/// `None`: others came in between, and did not put it back; drop the packet. (No pod has cookie 0: it is that
/// of an empty entry, written between the two words' being read.)
#[inline(always)]
pub(crate) fn take_entered() -> Option<u64> {
    let entered = ENTERED.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's own; what interrupts this run leaves `last` as it was. Volatile, so
    // that each word is moved once.
    unsafe {
        let last = &raw mut (*entered).last;
        let below = &raw mut (*entered).below;
        let LookUp { task: of, cookie } = last.read_volatile();
        let own = of == task();
        // Of two that do not follow each other as they should, none may be found by a third.
        last.write_volatile(if own { below.read_volatile() } else { LookUp::NONE });
        below.write_volatile(LookUp::NONE);
        (own && cookie != 0).then_some(cookie)
    }
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
