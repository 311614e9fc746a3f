//! The pod's private prefix: the addresses at which the application's connections meet the sidecar.
//!
//! It exists only inside a pod: a local route `127.72.0.0/16 dev lo src <pod>` makes the kernel pick the
//! pod's address as source, and gives every destination a port range of its own. Half of it are the slots:
//! each stands for one true destination for as long as the pod is attached. The other half is for the detour:
//! destinations whose slot another one has.

use crate::addr::{Endpoint, Family, Ip};

/// A slot of the pod's private prefix: the true destination that its address stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The slot, below [`SLOTS`].
    pub slot: u32,
    /// 4 or 6: each family has its own prefix.
    pub family: u32,
}

impl SlotKey {
    /// The key of the slot whose address `ip` is; `None` when it is not a slot's.
    #[must_use]
    #[inline(always)]
    pub fn new(cookie: u64, ip: &Ip) -> Option<SlotKey> {
        let slot = slot_at(ip)?;
        Some(SlotKey { cookie, slot, family: ip.family().number() })
    }
}

/// The prefix of IPv4, a /16.
pub const PREFIX4: u32 = 0x7f48_0000;
/// The prefix of IPv6, `fd72:6564:6972::/64`; the slots have 0, the others 1 in the third word.
pub const PREFIX6: [u32; 2] = [0xfd72_6564, 0x6972_0000];
/// How many slots each family has.
pub const SLOTS: u32 = 1 << 14;
/// First address of the upper half of [`PREFIX4`].
const SHARED4: u32 = PREFIX4 | 0x8000;

/// A hash of a destination, well mixed in its upper bits (Fibonacci hashing).
#[inline(always)]
fn hash(dst: &Endpoint) -> u32 {
    let words = &dst.ip.words;
    let folded = words[0] ^ words[1].rotate_left(7) ^ words[2].rotate_left(13) ^ words[3] ^ dst.port;
    folded.wrapping_mul(0x9e37_79b1)
}

/// The slot in which a destination belongs.
#[must_use]
#[inline(always)]
pub fn slot_of(dst: &Endpoint) -> u32 {
    hash(dst) >> 18
}

/// The address of a slot.
#[must_use]
#[inline(always)]
pub fn slot_address(slot: u32, family: Family) -> Ip {
    match family {
        Family::V4 => Ip::v4(PREFIX4 | slot),
        Family::V6 => Ip { words: [PREFIX6[0].to_be(), PREFIX6[1].to_be(), 0, slot.to_be()] },
    }
}

/// The slot whose address this is.
#[must_use]
#[inline(always)]
pub fn slot_at(ip: &Ip) -> Option<u32> {
    let number = u32::from_be(ip.words[3]);
    let has_slot = (in_prefix4(ip) && number < SHARED4) || (in_prefix6(ip) && ip.words[2] == 0);
    if has_slot { Some(number & (SLOTS - 1)) } else { None }
}

/// The address for a destination whose slot another one has.
#[must_use]
#[inline(always)]
pub fn shared_address(dst: &Endpoint) -> Ip {
    if dst.ip.is_v4() {
        Ip::v4(SHARED4 | hash(dst) >> 17)
    } else {
        Ip { words: [PREFIX6[0].to_be(), PREFIX6[1].to_be(), 1_u32.to_be(), hash(dst).to_be()] }
    }
}

/// Whether an address is in the pod's private IPv4 prefix.
#[must_use]
#[inline(always)]
pub fn in_prefix4(ip: &Ip) -> bool {
    ip.is_v4() && u32::from_be(ip.words[3]) & 0xffff_0000 == PREFIX4
}

/// Whether an address is in the pod's private IPv6 prefix. (The IPv4 one is in 127/8, which the kernel never
/// accepts from outside.)
#[must_use]
#[inline(always)]
pub fn in_prefix6(ip: &Ip) -> bool {
    (ip.words[0] ^ PREFIX6[0].to_be()) | (ip.words[1] ^ PREFIX6[1].to_be()) == 0
}

/// Whether a connection to this address may come from HANDOFF's users: localhost, or the shared half of the
/// prefix.
#[must_use]
#[inline(always)]
pub fn is_handoff_address(ip: &Ip) -> bool {
    (ip.is_loopback() || in_prefix6(ip)) && slot_at(ip).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str, port: u32) -> Endpoint {
        Endpoint { ip: text.parse::<core::net::IpAddr>().unwrap().into(), port }
    }

    #[test]
    fn a_slot_and_its_address_are_one_to_one() {
        for family in Family::ALL {
            for slot in [0, 1, 4711, SLOTS - 1] {
                let ip = slot_address(slot, family);
                assert_eq!(slot_at(&ip), Some(slot));
                assert!(!is_handoff_address(&ip));
                assert_eq!((in_prefix4(&ip), in_prefix6(&ip)), (family == Family::V4, family == Family::V6));
                let key = SlotKey { cookie: 9, slot, family: family.number() };
                assert_eq!(SlotKey::new(9, &ip), Some(key));
            }
        }
    }

    #[test]
    fn what_has_no_slot_of_its_own_is_in_the_other_half() {
        for text in ["10.0.0.1", "10.0.0.2", "255.255.255.255", "0.0.0.1", "fd00::1", "2001:db8::"] {
            for port in [1, 443, 65535] {
                let dst = endpoint(text, port);
                assert!(slot_of(&dst) < SLOTS);
                let ip = shared_address(&dst);
                assert!(in_prefix4(&ip) || in_prefix6(&ip), "{text}");
                assert_eq!(slot_at(&ip), None, "{text}");
                assert!(is_handoff_address(&ip), "{text}");
            }
        }
    }

    #[test]
    fn neighbours_get_different_slots() {
        let slots: [u32; 4] = [("10.0.0.1", 80), ("10.0.0.1", 443), ("10.0.0.2", 80), ("10.0.0.2", 443)]
            .map(|(ip, port)| slot_of(&endpoint(ip, port)));
        for (index, slot) in slots.iter().enumerate() {
            assert!(!slots[..index].contains(slot), "{slots:?}");
        }
    }

    #[test]
    fn only_localhost_and_the_shared_half_are_handed_over() {
        for (text, handed) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("127.72.128.1", true),
            ("127.72.0.1", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_handoff_address(&endpoint(text, 1).ip), handed, "{text}");
        }
    }
}
