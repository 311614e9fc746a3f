//! The pod's private prefix: the addresses at which the application's connections meet the sidecar.
//!
//! It exists only inside a pod: a local route `127.64.0.0/10 dev lo src <pod>` makes the kernel pick the
//! pod's address as source, and gives every destination a port range of its own. Most of it are the slots:
//! each stands for one true destination for as long as the pod is attached.
//!
//! The prefix has two halves. A connection to an address of the lower one finds the sidecar's listener by
//! itself, because that listens on all addresses. One to the upper half is *steered*: `inbound` gives it to a
//! listener that is bound to localhost, or to another address. The last 65,536 addresses are for the detour
//! of destinations that have no slot; they are steered.

use crate::addr::{Endpoint, Family, Ip};
use crate::kept::Key;

/// A slot of the pod's private prefix: the true destination that its address stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The slot: below [`SLOTS`], with the bit [`STEERED`] in the upper half.
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

    /// The slot's address; `None` for a DNS server's, which is not in the ordinary range.
    #[must_use]
    pub fn address(&self) -> Option<Ip> {
        let family = if self.family == Family::V4.number() { Family::V4 } else { Family::V6 };
        (self.slot < NUMBERS).then(|| slot_address(self.slot, family))
    }
}

impl Key for SlotKey {
    #[inline(always)]
    fn same(&self, other: &SlotKey) -> bool {
        self.cookie == other.cookie && (self.slot ^ other.slot) | (self.family ^ other.family) == 0
    }
}

/// The prefix of IPv4, 127.64.0.0/10.
pub const PREFIX4: u32 = 0x7f40_0000;
/// Length of [`PREFIX4`].
pub const PREFIX4_BITS: u8 = 10;
/// The prefix of IPv6, `fd72:6564:6972::/64`; the slots have 0, the others 1 in the third word.
pub const PREFIX6: [u32; 2] = [0xfd72_6564, 0x6972_0000];
/// Length of [`PREFIX6`].
pub const PREFIX6_BITS: u8 = 64;
/// How many slots each family has in either half: as many as the upper one has without the last /16.
pub const SLOTS: u32 = STEERED - (1 << 16);
/// The bit of a slot, and of its address, that `inbound` gives to the listener: the upper half of the prefix.
pub const STEERED: u32 = 1 << 21;
/// First address of the last /16 of [`PREFIX4`], 127.127.0.0.
const SHARED4: u32 = 0x7f7f_0000;
/// Slots of both halves are below this number.
const NUMBERS: u32 = SHARED4 - PREFIX4;
/// How many slots are tried for a destination before it takes the detour.
pub const TRIES: u32 = 3;
/// How many slots one pod may have, both families together: what it can make the node remember.
pub const SLOTS_PER_POD: u32 = 32_768;

/// A hash of a destination, well mixed in its upper bits (Fibonacci hashing).
#[inline(always)]
fn hash(dst: &Endpoint) -> u32 {
    let words = &dst.ip.words;
    let folded = words[0] ^ words[1].rotate_left(7) ^ words[2].rotate_left(13) ^ words[3] ^ dst.port;
    folded.wrapping_mul(0x9e37_79b1)
}

/// The slot in which a destination belongs, by the number of the try, which is below [`TRIES`]: the one of
/// the lower half.
#[must_use]
#[inline(always)]
pub fn slot_of(dst: &Endpoint, attempt: u32) -> u32 {
    // Another multiplier for each try: two destinations with one hash part at the next, unless they are the
    // same.
    let mixed = (hash(dst) ^ dst.port.rotate_left(16)).wrapping_mul(0x85eb_ca6b).wrapping_add(attempt << 13);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0xc2b2_ae35 ^ attempt << 8);
    ((mixed as u64 * SLOTS as u64) >> 32) as u32
}

/// The address of a slot.
#[must_use]
#[inline(always)]
pub fn slot_address(slot: u32, family: Family) -> Ip {
    match family {
        Family::V4 => Ip::v4(PREFIX4 + slot),
        Family::V6 => Ip { words: [PREFIX6[0].to_be(), PREFIX6[1].to_be(), 0, slot.to_be()] },
    }
}

/// The slot whose address this is.
#[must_use]
#[inline(always)]
pub fn slot_at(ip: &Ip) -> Option<u32> {
    let number = u32::from_be(ip.words[3]);
    if in_prefix4(ip) {
        return if number < SHARED4 { Some(number - PREFIX4) } else { None };
    }
    if in_prefix6(ip) && ip.words[2] == 0 && number < NUMBERS { Some(number) } else { None }
}

/// The address for a destination of a family that has no slot.
#[must_use]
#[inline(always)]
pub fn shared_address(dst: &Endpoint, family: Family) -> Ip {
    match family {
        Family::V4 => Ip::v4(SHARED4 | hash(dst) >> 16),
        Family::V6 => {
            Ip { words: [PREFIX6[0].to_be(), PREFIX6[1].to_be(), 1_u32.to_be(), hash(dst).to_be()] }
        }
    }
}

/// Whether an address is in the pod's private prefix.
#[must_use]
#[inline(always)]
pub fn in_prefix(ip: &Ip) -> bool {
    in_prefix4(ip) || in_prefix6(ip)
}

/// Whether an address is in the pod's private IPv4 prefix.
#[must_use]
#[inline(always)]
pub fn in_prefix4(ip: &Ip) -> bool {
    ip.is_v4() && u32::from_be(ip.words[3]) >> (32 - PREFIX4_BITS) == PREFIX4 >> (32 - PREFIX4_BITS)
}

/// Whether an address is in the pod's private IPv6 prefix.
#[must_use]
#[inline(always)]
pub fn in_prefix6(ip: &Ip) -> bool {
    (ip.words[0] ^ PREFIX6[0].to_be()) | (ip.words[1] ^ PREFIX6[1].to_be()) == 0
}

/// Whether a connection over `lo` to this address is steered.
#[must_use]
#[inline(always)]
pub fn is_steered(ip: &Ip) -> bool {
    let upper = u32::from_be(ip.words[3]) & STEERED != 0;
    in_prefix4(ip) && upper || in_prefix6(ip) && (upper || ip.words[2] != 0)
}

/// Whether a connection to this address may have taken the detour: localhost, or an address without a slot.
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
            for slot in [0, 1, 4711, SLOTS - 1].into_iter().flat_map(|slot| [slot, slot | STEERED]) {
                let ip = slot_address(slot, family);
                assert_eq!(is_steered(&ip), slot & STEERED != 0);
                assert_eq!(slot_at(&ip), Some(slot));
                assert!(!is_handoff_address(&ip));
                assert_eq!((in_prefix4(&ip), in_prefix6(&ip)), (family == Family::V4, family == Family::V6));
                let key = SlotKey { cookie: 9, slot, family: family.number() };
                assert_eq!((SlotKey::new(9, &ip), key.address()), (Some(key), Some(ip)));
            }
        }
    }

    #[test]
    fn what_has_no_slot_of_its_own_is_behind_the_slots() {
        for text in ["10.0.0.1", "10.0.0.2", "255.255.255.255", "0.0.0.1", "fd00::1", "2001:db8::"] {
            for port in [1, 443, 65535] {
                let dst = endpoint(text, port);
                assert!((0..TRIES).all(|attempt| slot_of(&dst, attempt) < SLOTS));
                let ip = shared_address(&dst, dst.ip.family());
                assert!(in_prefix4(&ip) || in_prefix6(&ip), "{text}");
                assert_eq!((slot_at(&ip), is_steered(&ip)), (None, true), "{text}");
                assert!(is_handoff_address(&ip), "{text}");
            }
        }
    }

    #[test]
    fn nothing_outside_of_the_prefix_is_steered() {
        for text in ["127.0.0.1", "127.63.255.255", "127.95.255.255", "127.128.0.0", "10.96.0.1", "10.32.0.1"]
        {
            assert!(!is_steered(&endpoint(text, 1).ip), "{text}");
        }
        for text in ["::1", "fd72:6564:6973::20:0", "fd00::20:0"] {
            assert!(!is_steered(&endpoint(text, 1).ip), "{text}");
        }
    }

    #[test]
    fn neighbours_get_different_slots() {
        let slots: [u32; 4] = [("10.0.0.1", 80), ("10.0.0.1", 443), ("10.0.0.2", 80), ("10.0.0.2", 443)]
            .map(|(ip, port)| slot_of(&endpoint(ip, port), 0));
        for (index, slot) in slots.iter().enumerate() {
            assert!(!slots[..index].contains(slot), "{slots:?}");
        }
    }

    /// How many of `count` destinations find no slot, when they come one after the other.
    fn without_slot(count: u32, destination: impl Fn(u32) -> Endpoint) -> u32 {
        extern crate std;
        let mut taken = std::collections::BTreeSet::new();
        let mut claim = |dst: Endpoint| (0..TRIES).any(|attempt| taken.insert(slot_of(&dst, attempt)));
        (0..count).map(|number| u32::from(!claim(destination(number)))).sum()
    }

    #[test]
    fn thirty_thousand_destinations_find_slots() {
        let addresses = |number: u32| Endpoint { ip: Ip::v4(0x0a00_0000 + number), port: 80 };
        let ports = |number: u32| Endpoint { ip: Ip::v4(0x0a00_0007), port: 1024 + number };
        let v6 = |number: u32| Endpoint {
            ip: Ip { words: [0xfd00_0000_u32.to_be(), 0, 0, number.to_be()] },
            port: 443,
        };
        for (name, missed) in [
            ("addresses", without_slot(30_000, addresses)),
            ("ports", without_slot(30_000, ports)),
            ("IPv6", without_slot(30_000, v6)),
        ] {
            assert!(missed <= 3, "{name}: {missed} of 30,000");
        }
    }

    #[test]
    fn two_destinations_with_one_slot_part_at_the_next_try() {
        let dst = |number: u32| Endpoint { ip: Ip::v4(0x0a00_0000 + number), port: 80 };
        let first = slot_of(&dst(0), 0);
        let twin = (1..u32::MAX >> 4).map(dst).find(|dst| slot_of(dst, 0) == first).expect("2 million slots");
        assert_ne!(slot_of(&dst(0), 1), slot_of(&twin, 1));
    }

    #[test]
    fn only_localhost_and_what_is_behind_the_slots_is_handed_over() {
        for (text, handed) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("127.127.128.1", true),
            ("127.64.0.0", false),
            ("127.126.255.255", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_handoff_address(&endpoint(text, 1).ip), handed, "{text}");
        }
    }
}
