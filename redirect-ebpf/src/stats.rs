//! Counting: one per-CPU entry per pod.

use redirect_common::{Event, Rule};

use crate::maps;

/// Adds one to a pod's counter.
#[inline(always)]
pub(crate) fn count(cookie: u64, event: Event) {
    if let Some(counters) = maps::counters(cookie) {
        // SAFETY: the entry is this CPU's own; a program is not preempted by another of its kind on the same
        // CPU in a way that could do more harm than lose a count.
        unsafe { (*counters).counts[event as usize] += 1 };
    }
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
