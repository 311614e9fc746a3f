//! How much a pod has of the tables that programs fill, counted in its entry of CLAIMS. The entry is there
//! until detach; then its memory is another pod's, which counts less exactly.

use redirect_common::Claims;

/// A number in a pod's entry of CLAIMS that several CPUs change at once.
#[derive(Clone, Copy)]
pub(crate) struct Count(*mut u64);

impl Count {
    /// Handshakes that are under way.
    #[inline(always)]
    pub(crate) fn handshakes(claims: *mut Claims) -> Count {
        // SAFETY: a value of the map.
        Count(unsafe { &raw mut (*claims).handshakes })
    }

    /// Clients on their way to the application.
    #[inline(always)]
    pub(crate) fn clients(claims: *mut Claims) -> Count {
        // SAFETY: as above.
        Count(unsafe { &raw mut (*claims).clients })
    }

    /// Listening sockets that are noted.
    #[inline(always)]
    pub(crate) fn listening(claims: *mut Claims) -> Count {
        // SAFETY: as above.
        Count(unsafe { &raw mut (*claims).listening })
    }

    /// Whether it is below a limit. A number that was counted down once too often is.
    #[inline(always)]
    pub(crate) fn is_below(self, limit: u64) -> bool {
        // SAFETY: a read of valid memory.
        let number = unsafe { core::ptr::read_volatile(self.0) };
        (number as i64) < limit as i64
    }

    /// Adds a number, all bits set for minus one: an instruction of the kernel's, as the target has no
    /// atomics in `core`.
    #[inline(always)]
    fn add(self, number: u64) {
        // SAFETY: the address is that of a number in a map's value, which is aligned.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0, in(reg) number) }
    }

    /// One more.
    #[inline(always)]
    pub(crate) fn up(self) {
        self.add(1);
    }

    /// One less.
    #[inline(always)]
    pub(crate) fn down(self) {
        self.add(u64::MAX);
    }
}

/// Whose turn it is among the listeners of a number, which is below 8; the next one's is one later.
#[inline(always)]
pub(crate) fn take_turn(claims: *mut Claims, number: u32) -> u32 {
    let shift = number << 3;
    let mut turns = 1_u64 << shift;
    // SAFETY: the address is that of a number in a map's value, which is aligned; the kernel has the
    // instruction since Linux 5.12.
    unsafe {
        let at = &raw mut (*claims).turns;
        core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) at, inout(reg) turns);
    }
    (turns >> shift) as u32
}
