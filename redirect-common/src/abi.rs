//! What attach writes about a pod: its configuration, and the keys of its policy. No struct has padding: the
//! kernel hashes and compares every byte of a key.
//!
//! A change of any layout in this crate is a new [`ABI_VERSION`], which is part of every pin's path;
//! `tests/abi.rs` holds the layouts against the file of that version.

use crate::addr::{Family, Ip};
use crate::flow::Caller;

/// Version of the map layouts; pins live under `redirect-cni/v<ABI_VERSION>`.
pub const ABI_VERSION: u32 = 5;

/// The pod's configuration, keyed by the cookie of its network namespace (`SO_NETNS_COOKIE`; never reused
/// within a boot).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// The key once more. A freed element of a hash map is handed to the next insertion at once, so a pointer
    /// to it may turn into another pod's configuration; who has read what it needs compares this last.
    pub cookie: u64,
    /// The id of the pod's cgroup, by which a configuration can be found again when all state is lost.
    pub cgroup_id: u64,
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
    /// First port of the namespace's `net.ipv4.ip_local_port_range`, host byte order.
    pub ephemeral_first: u32,
    /// Last port of that range.
    pub ephemeral_last: u32,
    /// The pod's IPv4 address, and preferred source of its local route to [`crate::prefix::PREFIX4`];
    /// [`Ip::NONE`] without IPv4.
    pub source4: Ip,
    /// The pod's IPv6 address, and preferred source of its local route to [`crate::prefix::PREFIX6`];
    /// [`Ip::NONE`] without IPv6.
    pub source6: Ip,
}

impl PodConfig {
    /// The pod's address of a family; [`Ip::NONE`] when it has none.
    #[must_use]
    #[inline(always)]
    pub const fn source(&self, family: Family) -> Ip {
        match family {
            Family::V4 => self.source4,
            Family::V6 => self.source6,
        }
    }

    /// Whether a port is one of Envoy's two listeners or, where DNS is captured, the DNS proxy's.
    #[must_use]
    #[inline(always)]
    pub const fn is_listener(&self, port: u32) -> bool {
        port == self.outbound_port
            || port == self.inbound_port
            || (self.flags & flags::DNS != 0 && port == self.dns_port)
    }

    /// A number below 6 for the listener on a port, which is one of [`PodConfig::is_listener`], and a family.
    #[must_use]
    #[inline(always)]
    pub const fn listener_number(&self, port: u32, family: Family) -> u32 {
        let first = if port == self.outbound_port {
            0
        } else if port == self.inbound_port {
            2
        } else {
            4
        };
        first + matches!(family, Family::V6) as u32
    }

    /// Whether a user or group is the proxy's.
    #[must_use]
    #[inline(always)]
    pub const fn is_proxy(&self, caller: &Caller) -> bool {
        caller.uid == self.proxy_uid || caller.gid == self.proxy_gid
    }

    /// Whether the kernel takes the ports of outgoing connections from a range with this one.
    #[must_use]
    #[inline(always)]
    pub const fn is_ephemeral(&self, port: u32) -> bool {
        self.ephemeral_first <= port && port <= self.ephemeral_last
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
    /// PORTS has [`super::set::OUTBOUND_EXCLUDED`] entries.
    pub const OUTBOUND_EXCLUDED_PORTS: u32 = 1 << 5;
    /// PORTS has [`super::set::OUTBOUND_INCLUDED`] entries.
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
    /// DNS is captured only to the servers in [`super::list::DNS_SERVERS`].
    pub const DNS_LISTED: u32 = 1 << 14;
    /// The guard stands on the pod's interfaces.
    pub const GUARD: u32 = 1 << 15;
    /// OWN has addresses besides source4, source6 and link-local ones.
    pub const MORE_ADDRESSES: u32 = 1 << 16;
    /// `interceptionMode` is TPROXY: the application sees its client.
    pub const TPROXY: u32 = 1 << 17;
}

/// Values of [`SetKey::set`] and [`PortsKey::set`].
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
    /// Where connections leave by the interfaces of `excludeInterfaces`; some prefixes say that they do not.
    pub const INTERFACE: u32 = 2;
    /// `dnsServers`.
    pub const DNS_SERVERS: u32 = 3;
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

/// A block of one of a pod's sets of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortsKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// Which set, see [`set`].
    pub set: u32,
    /// Which block: the port divided by [`PORTS_PER_BLOCK`].
    pub block: u32,
}

impl PortsKey {
    /// The key of the block that has a port, in host byte order.
    #[must_use]
    #[inline(always)]
    pub const fn of(cookie: u64, set: u32, port: u32) -> PortsKey {
        PortsKey { cookie, set, block: port / PORTS_PER_BLOCK }
    }
}

/// How many ports a block has: a set has at most 32 blocks.
pub const PORTS_PER_BLOCK: u32 = 2048;

/// Ports of one block, a bit each: a pod's list of any length is a handful of entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortBlock {
    /// The lowest port is the lowest bit of the first word.
    pub words: [u64; PORTS_PER_BLOCK as usize / 64],
}

impl PortBlock {
    /// No port.
    pub const EMPTY: PortBlock = PortBlock { words: [0; PORTS_PER_BLOCK as usize / 64] };

    /// Puts a port of this block in.
    pub const fn insert(&mut self, port: u32) {
        self.words[word(port)] |= bit(port);
    }

    /// Whether a port of this block is in.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, port: u32) -> bool {
        self.words[word(port)] & bit(port) != 0
    }
}

#[inline(always)]
const fn word(port: u32) -> usize {
    (port % PORTS_PER_BLOCK / 64) as usize
}

#[inline(always)]
const fn bit(port: u32) -> u64 {
    1 << (port % 64)
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

/// A place for a socket that listens on a port of a pod; several, as for the sidecar's listeners
/// ([`LISTENER_PLACES`](crate::socket::LISTENER_PLACES)).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListeningKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The port, host byte order.
    pub port: u32,
    /// Number of the place.
    pub place: u32,
}

/// How much a pod has of the tables that programs fill, so that no pod fills one of them for all others. Each
/// number goes up before or with an entry, and down when the entry is taken out again; two programs at the
/// same moment may go past a limit by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Entries of DESTINATIONS; at most [`SLOTS_PER_POD`](crate::prefix::SLOTS_PER_POD).
    pub destinations: u64,
    /// Entries of HANDOFF; at most [`HANDSHAKES_PER_POD`](crate::socket::HANDSHAKES_PER_POD).
    pub handshakes: u64,
    /// Entries of CLIENTS; at most [`CLIENTS_PER_POD`](crate::socket::CLIENTS_PER_POD), or twice as many with
    /// data in the SYN.
    pub clients: u64,
    /// Entries of LISTENING, those that attach made among them; at most
    /// [`LISTENING_PER_POD`](crate::socket::LISTENING_PER_POD).
    pub listening: u64,
    /// Whose turn it is in LISTENERS when all places are taken: a byte for each listener, see
    /// [`PodConfig::listener_number`]. (One that overflows moves the turn of the next, which does no harm.)
    pub turns: u64,
}

impl Claims {
    /// A pod that has not done anything yet.
    pub const NONE: Claims = Claims { destinations: 0, handshakes: 0, clients: 0, listening: 0, turns: 0 };
}

/// A range of a pod's policy, the data part of a longest-prefix key: the first 96 bits (pod and list) always
/// match whole, the rest as far as the range's prefix says. IPv4 ranges are stored in IPv4-mapped form, 96
/// bits longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeKey {
    /// The pod: cookie of its network namespace, in two halves because the kernel's key has its prefix length
    /// (4 bytes) in front and a `u64` would be unaligned.
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
        RangeKey::of(cookie, list, ip, ip.family())
    }

    /// As [`RangeKey::new`], for an address whose family is known.
    #[must_use]
    #[inline(always)]
    pub const fn of(cookie: u64, list: u32, ip: Ip, family: Family) -> RangeKey {
        let family = match family {
            Family::V4 => 0,
            Family::V6 => 1,
        };
        RangeKey { cookie: [cookie as u32, (cookie >> 32) as u32], list: list << 1 | family, ip }
    }

    /// The pod and the list of a key read back from the map.
    #[must_use]
    pub const fn pod_and_list(&self) -> (u64, u32) {
        (self.cookie[0] as u64 | (self.cookie[1] as u64) << 32, self.list >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_its_bit_in_its_block() {
        for port in [0, 63, 64, 2047, 2048, 15020, 65535] {
            let mut block = PortBlock::EMPTY;
            block.insert(port);
            assert!(block.contains(port));
            assert_eq!(block.words.iter().map(|word| word.count_ones()).sum::<u32>(), 1, "{port}");
            assert!(!block.contains(port ^ 1), "{port}");
        }
        assert_eq!(PortsKey::of(7, 1, 65535).block, 31);
        assert_eq!(PortsKey::of(7, 1, 2047).block, 0);
    }

    #[test]
    fn a_look_ups_word_is_its_own_tasks_only() {
        // Tasks as the kernel places them: next to each other, and far away.
        const FIRST: u64 = 0xffff_8880_0123_4000;
        let word = Entered::word(FIRST, 4711);
        assert_eq!(Entered::word(FIRST, word), 4711);
        for distance in (1..100_000).map(|step| step * 0x40) {
            let cookie = Entered::word(FIRST + distance, word);
            assert!(cookie >> 40 != 0, "{distance:#x}: {cookie:#x} may be a pod's");
        }
        // An empty word is no pod's either.
        assert!(Entered::word(FIRST, Entered::NONE) >> 40 != 0);
    }
}

/// The look-ups under way on a CPU, as the program in a pod's namespace leaves them for `inbound`. Each is
/// one word, [`Entered::word`], so that no other sees half of it. That program is written by hand and relies
/// on the order of the fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The last one.
    pub last: u64,
    /// The one that it has interrupted: that of a process (sock_diag) may be interrupted by a packet's. With
    /// PREEMPT_RT there may be a third; then the first one is forgotten, and its packet dropped.
    pub below: u64,
}

impl Entered {
    /// None is under way.
    pub const NONE: u64 = 0;
    /// What a task's number is multiplied with. The numbers are addresses, which differ in a few bits, as
    /// cookies do. Two tasks' products differ in high bits too, so that a word read by another task than
    /// wrote it is the cookie of no pod. (The golden ratio of 2^64, of multiplicative hashing.)
    pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The word of a look-up by a task, as `bpf_get_current_task()` numbers it (in a softirq the interrupted
    /// one), for the pod of this cookie. The word of a word is the cookie again.
    #[inline(always)]
    #[must_use]
    pub const fn word(task: u64, cookie: u64) -> u64 {
        task.wrapping_mul(Entered::SPREAD) ^ cookie
    }
}

/// What the guard asks `inbound` on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// The task, as in [`Entered::word`]; 0 where nothing is asked.
    pub task: u64,
    /// The sidecar's port whose listener is to get the packet; 0 where it is to get none.
    pub port: u64,
}
