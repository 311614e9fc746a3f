//! "Give it to the sidecar's listener": one piece of code for `inbound` and the guard.

use redirect_common::{Family, LISTENER_PLACES, ListenerKey};

/// Something that can be given to a listening socket.
pub(crate) trait Receiver {
    /// Gives it to the listener in a place; false when the place is empty or the listener cannot take it.
    fn assign(&self, key: &ListenerKey) -> bool;
}

/// Finds a listener of the sidecar that takes the connection; an IPv6 listener may serve IPv4 as well.
#[inline(always)]
pub(crate) fn steer(packet: &impl Receiver, cookie: u64, port: u32, family: Family) -> bool {
    for place in 0..LISTENER_PLACES {
        if packet.assign(&ListenerKey::new(cookie, port, family, place)) {
            return true;
        }
    }
    if let Family::V4 = family {
        for place in 0..LISTENER_PLACES {
            if packet.assign(&ListenerKey::new(cookie, port, Family::V6, place)) {
                return true;
            }
        }
    }
    false
}
