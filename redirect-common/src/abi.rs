//! Keys and values of the maps. No struct has padding: the kernel hashes and compares every byte of a key.
//!
//! A change of any layout here is a new [`ABI_VERSION`], which is part of every pin's path.

use crate::addr::{Endpoint, Ip};

/// Version of the map layouts; pins live under `redirect-cni/v<ABI_VERSION>`.
pub const ABI_VERSION: u32 = 1;

/// The pod's configuration, keyed by the cookie of its network namespace (`SO_NETNS_COOKIE`; never reused within
/// a boot).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// Bits of [`flags`].
    pub flags: u32,
    /// The proxy's uid in the initial user namespace.
    pub proxy_uid: u32,
    /// The proxy's gid in the initial user namespace.
    pub proxy_gid: u32,
    /// Envoy's outbound listener, host byte order.
    pub outbound_port: u32,
    /// Envoy's inbound listener, host byte order.
    pub inbound_port: u32,
    /// The DNS proxy, host byte order.
    pub dns_port: u32,
    /// Until when a `redirect trace` reader wants records, in `CLOCK_MONOTONIC` nanoseconds; 0 for never.
    pub trace_until: u64,
    /// The id of the pod's cgroup, by which a configuration can be found again when all state is lost.
    pub cgroup_id: u64,
    /// The pod's IPv4 address, and preferred source of its local route to [`SPREAD4`]; [`Ip::NONE`] without IPv4.
    pub source4: Ip,
    /// The pod's IPv6 address, and preferred source of its local route to [`SPREAD6`]; [`Ip::NONE`] without IPv6.
    pub source6: Ip,
}

impl PodConfig {
    /// The pod's address of a family; [`Ip::NONE`] when it has none.
    #[must_use]
    #[inline(always)]
    pub const fn source(&self, v4: bool) -> Ip {
        if v4 { self.source4 } else { self.source6 }
    }
}

/// Bits of [`PodConfig::flags`]: what is worth asking the other maps, and the policy's switches.
pub mod flags {
    /// `includeOutboundIPRanges` is `*`.
    pub const INCLUDE_ALL: u32 = 1;
    /// RANGES has [`super::list::INCLUDED`] entries.
    pub const INCLUDED_RANGES: u32 = 1 << 1;
    /// RANGES has [`super::list::EXCLUDED`] entries.
    pub const EXCLUDED_RANGES: u32 = 1 << 2;
    /// RANGES has [`super::list::INTERFACE`] entries.
    pub const EXCLUDED_INTERFACES: u32 = 1 << 3;
    /// An included range is a loopback range.
    pub const LOOPBACK_INCLUDED: u32 = 1 << 4;
    /// SETS has [`super::set::OUTBOUND_EXCLUDED`] entries.
    pub const OUTBOUND_EXCLUDED_PORTS: u32 = 1 << 5;
    /// SETS has [`super::set::OUTBOUND_INCLUDED`] entries.
    pub const OUTBOUND_INCLUDED_PORTS: u32 = 1 << 6;
    /// Only groups in [`super::set::GROUP`] are captured.
    pub const GROUPS_INCLUDED: u32 = 1 << 7;
    /// Groups in [`super::set::GROUP`] are not captured.
    pub const GROUPS_EXCLUDED: u32 = 1 << 8;
    /// DNS capture.
    pub const DNS: u32 = 1 << 9;
    /// `includeInboundPorts` is `*`.
    pub const INBOUND_ALL: u32 = 1 << 10;
    /// `includeInboundPorts` is a list.
    pub const INBOUND_LIST: u32 = 1 << 11;
    /// SETS has [`super::set::INTERFACE`] entries.
    pub const INBOUND_INTERFACES: u32 = 1 << 12;
    /// `excludeInterfaces` names `lo`.
    pub const LO_EXCLUDED: u32 = 1 << 13;
}

/// Values of [`SetKey::set`].
pub mod set {
    /// `excludeOutboundPorts`; the value is a port.
    pub const OUTBOUND_EXCLUDED: u32 = 0;
    /// `includeOutboundPorts`; the value is a port.
    pub const OUTBOUND_INCLUDED: u32 = 1;
    /// `excludeInboundPorts`; the value is a port.
    pub const INBOUND_EXCLUDED: u32 = 2;
    /// `includeInboundPorts`; the value is a port.
    pub const INBOUND_INCLUDED: u32 = 3;
    /// Owner groups; the value is a gid in the initial user namespace.
    pub const GROUP: u32 = 4;
    /// `excludeInterfaces`; the value is an interface index in the pod.
    pub const INTERFACE: u32 = 5;
}

/// Values of [`RangeKey::list`].
pub mod list {
    /// `excludeOutboundIPRanges`.
    pub const EXCLUDED: u32 = 0;
    /// `includeOutboundIPRanges`.
    pub const INCLUDED: u32 = 1;
    /// Subnets behind the interfaces of `excludeInterfaces`.
    pub const INTERFACE: u32 = 2;
}

/// A member of one of a pod's sets of small numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// Which set, see [`set`].
    pub set: u32,
    /// The member, host byte order.
    pub value: u32,
}

/// An address of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddrKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The address.
    pub ip: Ip,
}

/// A range of a pod's policy, the data part of a longest-prefix key: the first 96 bits (pod and list) always match
/// whole, the rest as far as the range's prefix says. IPv4 ranges are stored in IPv4-mapped form, 96 bits longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeKey {
    /// The pod: cookie of its network namespace, in two halves because the kernel's key has its prefix length (4
    /// bytes) in front and a `u64` would be unaligned.
    pub cookie: [u32; 2],
    /// Which list, see [`list`], times two, plus one for IPv6: `::/0` must not match IPv4-mapped addresses.
    pub list: u32,
    /// The address.
    pub ip: Ip,
}

impl RangeKey {
    /// Bits in front of the address.
    pub const HEAD_BITS: u32 = 96;
    /// All bits: what a look-up asks with.
    pub const BITS: u32 = RangeKey::HEAD_BITS + 128;

    /// The key of `ip` in a list of the pod.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, list: u32, ip: Ip) -> RangeKey {
        let family = if ip.is_v4() { 0 } else { 1 };
        RangeKey { cookie: [cookie as u32, (cookie >> 32) as u32], list: list << 1 | family, ip }
    }

    /// The pod and the list of a key read back from the map.
    #[must_use]
    pub const fn pod_and_list(&self) -> (u64, u32) {
        (self.cookie[0] as u64 | (self.cookie[1] as u64) << 32, self.list >> 1)
    }
}

/// A loopback handshake between the application and the sidecar that is under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandoffKey {
    /// The pod: cookie of its network namespace (127.0.0.1:port repeats in every pod).
    pub cookie: u64,
    /// The client socket's own address.
    pub client: Endpoint,
    /// The address that the client was rewritten to.
    pub proxy: Endpoint,
}

/// A slot for a listening socket of the sidecar. Several slots per listener, because SO_REUSEPORT workers each have
/// a socket and closing one must not make the sidecar unknown.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The listening port, host byte order.
    pub port: u32,
    /// Family (4 or 6) in the low byte, slot number above it.
    pub slot: u32,
}

/// How many slots there are per pod, port and family.
pub const LISTENER_SLOTS: u32 = 4;

impl ListenerKey {
    /// The key of slot `slot` for `port` in the family that `v4` says.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, port: u32, v4: bool, slot: u32) -> ListenerKey {
        ListenerKey { cookie, port, slot: if v4 { 4 } else { 6 } | slot << 8 }
    }
}

/// What a socket's record says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The true destination. Meaningless for listeners.
    pub dst: Endpoint,
    /// Whose record it is, see [`role`].
    pub role: u32,
}

/// Values of [`Origin::role`].
pub mod role {
    /// Not redirected (a record that a later direct `connect()` cleared).
    pub const NONE: u32 = 0;
    /// A client socket whose `connect()` was rewritten; `dst` is what the application dialled.
    pub const CLIENT: u32 = 1;
    /// A client socket, TCP or UDP, that talks to the DNS proxy; `dst` is the server that the application dialled.
    pub const DNS_CLIENT: u32 = 2;
    /// The sidecar's inbound listener; accepted sockets inherit the record (BPF_F_CLONE).
    pub const INBOUND_LISTENER: u32 = 3;
    /// An accepted socket of the sidecar; `dst` is the original destination.
    pub const ACCEPTED: u32 = 4;
}

/// How many datagrams to different servers on one socket are told apart.
pub const DNS_PENDING: usize = 8;

/// The servers that an unconnected UDP socket has asked and that have not answered, oldest first. The DNS proxy answers
/// everything from one address; its answers are attributed in the order of the questions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsPending {
    /// Number of the question that is attributed next.
    pub first: u32,
    /// Number of the next question.
    pub next: u32,
    /// The servers, by question number modulo [`DNS_PENDING`].
    pub servers: [Endpoint; DNS_PENDING],
}

impl DnsPending {
    /// Nothing asked.
    pub const NONE: DnsPending = DnsPending { first: 0, next: 0, servers: [Endpoint::NONE; DNS_PENDING] };

    /// Notes a question; the oldest is forgotten when there are too many.
    #[inline(always)]
    pub fn asked(&mut self, server: Endpoint) {
        self.servers[self.next as usize % DNS_PENDING] = server;
        self.next = self.next.wrapping_add(1);
        if self.next.wrapping_sub(self.first) > DNS_PENDING as u32 {
            self.first = self.next.wrapping_sub(DNS_PENDING as u32);
        }
    }

    /// The server to whom an answer is attributed: the one asked first of those who have not answered. Without any, the
    /// one asked last, so that a repeated answer, or one that was only peeked at before, still has a source.
    #[inline(always)]
    pub fn answered(&mut self) -> Option<Endpoint> {
        let number = if self.first == self.next { self.next.wrapping_sub(1) } else { self.first };
        if self.first != self.next {
            self.first = self.first.wrapping_add(1);
        }
        let server = self.servers[number as usize % DNS_PENDING];
        (server.port != 0).then_some(server)
    }
}

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

/// The prefix that exists only inside a pod, IPv4: a local route `127.72.0.0/16 dev lo src <pod>` makes the kernel
/// pick the pod's address as source, and gives every destination a port range of its own.
///
/// Its lower half are the slots: each stands for one true destination for as long as the pod is attached. The upper half
/// is for destinations whose slot another one has; which destination a connection there is meant for crosses in HANDOFF.
pub const SPREAD4: u32 = 0x7f48_0000;
/// The same for IPv6: `fd72:6564:6972::/64`; the slots have 0, the others 1 in the third word.
pub const SPREAD6: [u32; 2] = [0xfd72_6564, 0x6972_0000];
/// How many slots each family has.
pub const SLOTS: u32 = 1 << 14;
/// First address of the upper half of [`SPREAD4`].
const SHARED4: u32 = SPREAD4 | 0x8000;

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
pub fn slot_address(slot: u32, v4: bool) -> Ip {
    if v4 {
        Ip::v4(SPREAD4 | slot)
    } else {
        Ip { words: [SPREAD6[0].to_be(), SPREAD6[1].to_be(), 0, slot.to_be()] }
    }
}

/// The slot whose address this is.
#[must_use]
#[inline(always)]
pub fn slot_at(ip: &Ip) -> Option<u32> {
    let number = u32::from_be(ip.words[3]);
    let has_slot = (in_spread4(ip) && number < SHARED4) || (in_spread6(ip) && ip.words[2] == 0);
    if has_slot { Some(number & (SLOTS - 1)) } else { None }
}

/// The address for a destination whose slot another one has.
#[must_use]
#[inline(always)]
pub fn shared_address(dst: &Endpoint) -> Ip {
    if dst.ip.is_v4() {
        Ip::v4(SHARED4 | hash(dst) >> 17)
    } else {
        Ip { words: [SPREAD6[0].to_be(), SPREAD6[1].to_be(), 1_u32.to_be(), hash(dst).to_be()] }
    }
}

/// Whether an address is in the pod's private IPv4 prefix.
#[must_use]
#[inline(always)]
pub fn in_spread4(ip: &Ip) -> bool {
    ip.is_v4() && u32::from_be(ip.words[3]) & 0xffff_0000 == SPREAD4
}

/// Whether an address is in the pod's private IPv6 prefix. (The IPv4 one is in 127/8, which the kernel never accepts
/// from outside.)
#[must_use]
#[inline(always)]
pub fn in_spread6(ip: &Ip) -> bool {
    (ip.words[0] ^ SPREAD6[0].to_be()) | (ip.words[1] ^ SPREAD6[1].to_be()) == 0
}

/// Whether a connection to this address may come from HANDOFF's users: localhost, or the shared half of the prefix.
#[must_use]
#[inline(always)]
pub fn is_handoff_address(ip: &Ip) -> bool {
    (ip.is_loopback() || in_spread6(ip)) && slot_at(ip).is_none()
}

const _: () = {
    assert!(size_of::<PodConfig>() == 72);
    assert!(size_of::<SetKey>() == 16);
    assert!(size_of::<AddrKey>() == 24);
    assert!(size_of::<RangeKey>() == 28);
    assert!(size_of::<HandoffKey>() == 48);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<Origin>() == 24);
    assert!(size_of::<DnsPending>() == 168);
    assert!(size_of::<SlotKey>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u32) -> Endpoint {
        Endpoint { ip: Ip::v4(number), port: 53 }
    }

    #[test]
    fn answers_are_attributed_in_the_order_of_the_questions() {
        let mut pending = DnsPending::NONE;
        assert_eq!(pending.answered(), None);
        pending.asked(server(1));
        pending.asked(server(2));
        assert_eq!(pending.answered(), Some(server(1)));
        assert_eq!(pending.answered(), Some(server(2)));
        assert_eq!(pending.answered(), Some(server(2)), "asked last");
        pending.asked(server(3));
        assert_eq!(pending.answered(), Some(server(3)));
    }

    #[test]
    fn too_many_questions_forget_the_oldest() {
        let mut pending = DnsPending { first: u32::MAX - 2, next: u32::MAX - 2, ..DnsPending::NONE };
        for number in 0..20 {
            pending.asked(server(number));
        }
        assert_eq!(pending.answered(), Some(server(20 - DNS_PENDING as u32)));
    }

    fn endpoint(text: &str, port: u32) -> Endpoint {
        Endpoint { ip: text.parse::<core::net::IpAddr>().unwrap().into(), port }
    }

    #[test]
    fn a_slot_and_its_address_are_one_to_one() {
        for v4 in [true, false] {
            for slot in [0, 1, 4711, SLOTS - 1] {
                let ip = slot_address(slot, v4);
                assert_eq!(slot_at(&ip), Some(slot));
                assert!(!is_handoff_address(&ip));
                assert!(if v4 { in_spread4(&ip) } else { in_spread6(&ip) });
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
                assert!(in_spread4(&ip) || in_spread6(&ip), "{text}");
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
