//! Counting: one per-CPU entry per pod.

use redirect_common::stats::EVENTS;
use redirect_common::{Event, Rule};

use crate::maps;

/// Adds one to a pod's counter.
#[inline(always)]
pub(crate) fn count(cookie: u64, event: Event) {
    count_event(cookie, event as u64);
}

/// The verifier walks a function with global linkage once, and not again behind every branch that leads to
/// it. The event is a whole register wide, so that what is compared is what is added to the address.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_event(cookie: u64, event: u64) -> i32 {
    if event < EVENTS as u64
        && let Some(counters) = maps::counters(cookie)
    {
        // SAFETY: within the array. The entry is this CPU's own; a program is not preempted by another of its
        // kind on the same CPU in a way that could do more harm than lose a count.
        unsafe { *counters.cast::<u64>().add(event as usize) += 1 };
    }
    0
}

/// Counts an inbound packet that is refused; `wanted` is not 0 where the sidecar may have its port. If not,
/// no socket listens on that port of the ephemeral range, and most such packets are no SYN but late, for a
/// connection that is over. Walked once, as [`count_event`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_refused(cookie: u64, wanted: u64) -> i32 {
    count(cookie, if wanted == 0 { Event::InboundNoSocket } else { Event::InboundRefused });
    0
}

/// What to count for a flow that is left alone.
#[inline(always)]
pub(crate) fn direct_event(rule: Rule) -> Event {
    match rule {
        Rule::ProxyUid | Rule::ProxyGid => Event::ProxyDirect,
        Rule::Passthrough | Rule::AppOverLoopback | Rule::AppOverLoopbackByGid | Rule::Localhost => {
            Event::LoopbackDirect
        }
        Rule::NoMatch => Event::UnmatchedDirect,
        Rule::ExcludedInterface | Rule::ExcludedPort | Rule::OwnerGroup | Rule::ExcludedRange => {
            Event::ExcludedDirect
        }
        // Rules that redirect; `decide()` never gives them as a reason to leave a flow alone.
        Rule::ProxyUidSelfCall
        | Rule::ProxyGidSelfCall
        | Rule::Dns
        | Rule::IncludedPort
        | Rule::IncludedRange => Event::ExcludedDirect,
    }
}
