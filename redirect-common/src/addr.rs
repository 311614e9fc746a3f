//! Addresses as the maps store them: one shape for both families, so that an IPv4 connection on an IPv4
//! socket and the same connection on a dual-stack IPv6 socket have the same key.

/// An IP address in 16 bytes of network order; IPv4 is stored in its IPv4-mapped form `::ffff:a.b.c.d`.
///
/// The four words are what the kernel's contexts hold (`user_ip6[4]`): each `u32` *in memory* is in network
/// byte order on every CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ip {
    /// The address, most significant word first, every word in network byte order.
    pub words: [u32; 4],
}

/// The address families, with the numbers that keys of maps have.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4, IPv4-mapped addresses of IPv6 sockets included.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family that an address is written in: an IPv4-mapped one is IPv6.
    #[must_use]
    pub const fn of(ip: &core::net::IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// 4 or 6.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// 127.0.0.1 or ::1.
    #[must_use]
    #[inline(always)]
    pub const fn localhost(self) -> Ip {
        match self {
            Family::V4 => Ip::LOCALHOST4,
            Family::V6 => Ip::LOCALHOST6,
        }
    }
}

/// `::ffff:0:0/96`, the third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Ip {
    /// No address: what an unbound socket has (`::`).
    pub const NONE: Ip = Ip { words: [0; 4] };
    /// `127.0.0.1`
    pub const LOCALHOST4: Ip = Ip::v4(0x7f00_0001);
    /// `::1`
    pub const LOCALHOST6: Ip = Ip { words: [0, 0, 0, 1_u32.to_be()] };
    /// `127.0.0.6`, the source that Envoy binds for its connections to the application.
    pub const PASSTHROUGH4: Ip = Ip::v4(0x7f00_0006);
    /// `::6`, the same for IPv6; attach adds it to the pod's `lo`.
    pub const PASSTHROUGH6: Ip = Ip { words: [0, 0, 0, 6_u32.to_be()] };

    /// From an IPv4 address as a number (`0x7f000001` is 127.0.0.1).
    #[must_use]
    #[inline(always)]
    pub const fn v4(number: u32) -> Ip {
        Ip::v4_word(number.to_be())
    }

    /// From an IPv4 address word as a kernel context holds it (network byte order in memory).
    #[must_use]
    #[inline(always)]
    pub const fn v4_word(word: u32) -> Ip {
        Ip { words: [0, 0, MAPPED, word] }
    }

    /// Whether this is an IPv4 address (IPv4-mapped included).
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] | self.words[1] | (self.words[2] ^ MAPPED) == 0
    }

    /// The family that the address belongs to on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// Whether this is the unspecified address of either family (`0.0.0.0`, `::`).
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] | self.words[1] | self.words[3] == 0 && (self.words[2] == 0 || self.words[2] == MAPPED)
    }

    /// Whether the kernel delivers to it over `lo` without knowing any interface: 127.0.0.0/8, ::1, ::6.
    ///
    /// `::6/128` counts because attach puts it on `lo`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        self.is_loopback_of(self.family())
    }

    /// As [`Ip::is_loopback`], for an address whose family is known.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback_of(&self, family: Family) -> bool {
        match family {
            Family::V4 => u32::from_be(self.words[3]) >> 24 == 127,
            Family::V6 => self.same(&Ip::LOCALHOST6) || self.same(&Ip::PASSTHROUGH6),
        }
    }

    /// Whether this is an IPv6 link-local address, fe80::/10.
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0xfe80 >> 6
    }

    /// Whether this is a multicast address, or the broadcast address of IPv4.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            let number = u32::from_be(self.words[3]);
            number >> 28 == 0xe || number == u32::MAX
        } else {
            u32::from_be(self.words[0]) >> 24 == 0xff
        }
    }

    /// Equality without a call (`==` on arrays becomes `memcmp`) and with one branch: the verifier follows
    /// both ways of every branch, and four of them in each of a dozen comparisons made half a million
    /// instructions of `connect6`.
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, other: &Ip) -> bool {
        self.difference(other) == 0
    }

    /// The bits in which two addresses differ, folded; 0 when they are the same.
    #[inline(always)]
    const fn difference(&self, other: &Ip) -> u32 {
        (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3])
    }

    /// The 16 bytes in network order.
    #[must_use]
    pub fn octets(&self) -> [u8; 16] {
        let mut out = [0; 16];
        for (chunk, word) in out.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(ip: core::net::IpAddr) -> Ip {
        let octets = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Ip { words }
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> core::net::IpAddr {
        core::net::Ipv6Addr::from(ip.octets()).to_canonical()
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address, see [`Ip`].
    pub ip: Ip,
    /// The port in host byte order; 32 bits wide so that the struct has no padding (it is part of map keys).
    pub port: u32,
}

impl Endpoint {
    /// No endpoint.
    pub const NONE: Endpoint = Endpoint { ip: Ip::NONE, port: 0 };

    /// Equality without a call and with one branch, as [`Ip::same`].
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, other: &Endpoint) -> bool {
        self.ip.difference(&other.ip) | (self.port ^ other.port) == 0
    }
}

impl From<core::net::SocketAddr> for Endpoint {
    fn from(address: core::net::SocketAddr) -> Endpoint {
        Endpoint { ip: address.ip().into(), port: u32::from(address.port()) }
    }
}

impl From<Endpoint> for core::net::SocketAddr {
    fn from(endpoint: Endpoint) -> core::net::SocketAddr {
        // A port never exceeds 16 bits: every writer takes it from a 16-bit field.
        core::net::SocketAddr::new(endpoint.ip.into(), endpoint.port as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.1.2.3", "0.0.0.0", "255.255.255.255", "fd00::1", "::", "::1", "2001:db8::ffff:1"] {
            assert_eq!(IpAddr::from(ip(text)), text.parse::<IpAddr>().unwrap());
        }
        assert_eq!(ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
    }

    #[test]
    fn constants_mean_what_they_say() {
        assert_eq!(Ip::LOCALHOST4, ip("127.0.0.1"));
        assert_eq!(Ip::LOCALHOST6, ip("::1"));
        assert_eq!(Ip::PASSTHROUGH4, ip("127.0.0.6"));
        assert_eq!(Ip::PASSTHROUGH6, ip("::6"));
    }

    #[test]
    fn loopback_is_exactly_127_and_the_two_v6_addresses() {
        for yes in ["127.0.0.1", "127.255.255.255", "127.0.0.0", "::1", "::6"] {
            assert!(ip(yes).is_loopback(), "{yes}");
        }
        for no in ["126.255.255.255", "128.0.0.0", "255.0.0.1", "::2", "::7", "7f00::1", "::", "0.0.0.0"] {
            assert!(!ip(no).is_loopback(), "{no}");
        }
    }

    #[test]
    fn multicast_is_exactly_224_4_ff00_8_and_the_broadcast_address() {
        for yes in ["224.0.0.0", "239.255.255.255", "255.255.255.255", "ff00::", "ff02::1"] {
            assert!(ip(yes).is_multicast(), "{yes}");
        }
        for no in ["223.255.255.255", "240.0.0.1", "255.255.255.254", "fe80::1", "2001:db8::ff"] {
            assert!(!ip(no).is_multicast(), "{no}");
        }
    }

    #[test]
    fn unspecified_covers_both_families() {
        assert!(ip("0.0.0.0").is_unspecified() && ip("::").is_unspecified());
        assert!(
            !ip("::1").is_unspecified() && !ip("0.0.0.1").is_unspecified() && !ip("::1:0:0").is_unspecified()
        );
    }
}
