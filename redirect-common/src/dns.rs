//! DNS: an address for every server, at which the DNS proxy is asked, and what is known about the proxy
//! itself.
//!
//! A question to 10.96.0.10:53 goes to the slot of that server and the proxy's port. The proxy answers from
//! the address at which it was asked, so the answer's source names the server, in any order of answers, and
//! also when some get lost. Nothing is kept about the socket that asked.
//!
//! IPv4 servers have the ordinary slots of [`crate::prefix`]. Those that are dialled at a loopback address
//! have slots in a range without a preferred source, because the client is 127.0.0.1 then. IPv6 is different:
//! the kernel lets a proxy answer only from an address that an interface has (`ip6_datagram_send_ctl()`, seen
//! on Linux 6.18), so attach puts a few on `lo`, and there are no more servers than these.

use crate::addr::{Endpoint, Family, Ip};
use crate::prefix::{PREFIX6, SLOTS, SlotKey, in_prefix6, slot_address, slot_of};

/// `127.63.0.0/16`: slots of servers that the application dials at a loopback address.
pub const LOCAL_SERVERS4: u32 = 0x7f3f_0000;
/// The third word of the addresses of IPv6 servers, `fd72:6564:6972:0:0:53::/96`.
const SERVERS6: u32 = 0x53;
/// How many addresses attach puts on `lo` for IPv6 servers. The first is for `[::1]:53`.
pub const ADDRESSES6: u32 = 8;
/// How many slots are tried for a server before it is refused.
pub const ATTEMPTS: u32 = 8;
/// The bit that tells these slots from the ordinary ones in the keys of DESTINATIONS.
const DNS_SLOT: u32 = 1 << 30;

/// The address of an IPv6 server's slot; `number` is below [`ADDRESSES6`].
#[must_use]
#[inline(always)]
pub const fn address6(number: u32) -> Ip {
    Ip { words: [PREFIX6[0].to_be(), PREFIX6[1].to_be(), SERVERS6.to_be(), number.to_be()] }
}

/// The slot that is tried at the `attempt`-th time for a server.
#[must_use]
#[inline(always)]
pub fn candidate(server: &Endpoint, attempt: u32) -> Ip {
    let slot = slot_of(server, 0).wrapping_add(attempt);
    match server.ip.family() {
        Family::V4 if server.ip.is_loopback() => Ip::v4(LOCAL_SERVERS4 | (slot & 0xffff)),
        Family::V4 => slot_address(slot % SLOTS, Family::V4),
        Family::V6 if server.ip.is_loopback() => address6(0),
        Family::V6 => address6(1 + slot % (ADDRESSES6 - 1)),
    }
}

/// The key of the slot whose address `ip` is, an ordinary one or a DNS server's; `None` when it is neither.
#[must_use]
#[inline(always)]
pub fn slot_key(cookie: u64, ip: &Ip) -> Option<SlotKey> {
    let number = u32::from_be(ip.words[3]);
    let (ours, slot) = if ip.is_v4() {
        (number & 0xffff_0000 == LOCAL_SERVERS4, number & 0xffff)
    } else {
        (in_prefix6(ip) && ip.words[2] == SERVERS6.to_be() && number < ADDRESSES6, number)
    };
    if ours {
        return Some(SlotKey { cookie, slot: DNS_SLOT | slot, family: ip.family().number() });
    }
    SlotKey::new(cookie, ip)
}

/// What is known about a pod's DNS proxy, from its `bind()` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsProxy {
    /// Its port, host byte order.
    pub port: u32,
    /// Bits of [`proxy`].
    pub state: u32,
}

/// Bits of [`DnsProxy::state`].
pub mod proxy {
    /// It asked for 127.0.0.1 and was given 0.0.0.0.
    pub const OPENED4: u32 = 1;
    /// It asked for ::1 and was given ::.
    pub const OPENED6: u32 = 1 << 1;
    /// It answers from the address at which it was asked: what was asked where need not be remembered.
    pub const ANSWERS_WHERE_ASKED: u32 = 1 << 2;
    /// It was seen to answer from another address.
    pub const ANSWERS_ELSEWHERE: u32 = 1 << 3;
    /// It asked for 0.0.0.0 itself, or for :: without IPV6_V6ONLY: it is there for the outside as well.
    pub const WILDCARD4: u32 = 1 << 4;
    /// It asked for :: itself.
    pub const WILDCARD6: u32 = 1 << 5;
    /// What stays when it opens another socket.
    pub const OPEN: u32 = OPENED4 | OPENED6 | WILDCARD4 | WILDCARD6;

    /// The bits of which one says that the proxy can be asked over IPv4, or over IPv6.
    #[must_use]
    #[inline(always)]
    pub const fn asked_over(family: crate::addr::Family) -> u32 {
        match family {
            crate::addr::Family::V4 => OPENED4 | WILDCARD4,
            crate::addr::Family::V6 => OPENED6 | WILDCARD6,
        }
    }
}

/// A client of a DNS proxy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnsClient {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The client's address as the proxy sees it.
    pub client: Endpoint,
    zero: u32,
}

impl DnsClient {
    /// The client of a pod's proxy with this address.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, client: Endpoint) -> DnsClient {
        DnsClient { cookie, client, zero: 0 }
    }
}

/// How many unanswered questions of a client are told apart.
pub const ASKED: usize = 8;

/// Where a client's unanswered questions came in, oldest first. Kept only for a proxy that is not known to
/// answer from where it was asked: its answers are attributed in the order of the questions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsAsked {
    /// Number of the question that is attributed next.
    pub first: u32,
    /// Number of the next question.
    pub next: u32,
    /// The addresses, by question number modulo [`ASKED`].
    pub at: [Ip; ASKED],
}

impl DnsAsked {
    /// One question.
    #[must_use]
    #[inline(always)]
    pub const fn once(at: Ip) -> DnsAsked {
        DnsAsked {
            first: 0,
            next: 1,
            at: [at, Ip::NONE, Ip::NONE, Ip::NONE, Ip::NONE, Ip::NONE, Ip::NONE, Ip::NONE],
        }
    }

    /// Notes a question; the oldest is forgotten when there are too many.
    #[inline(always)]
    pub fn asked(&mut self, at: Ip) {
        self.at[self.next as usize % ASKED] = at;
        self.next = self.next.wrapping_add(1);
        if self.next.wrapping_sub(self.first) > ASKED as u32 {
            self.first = self.next.wrapping_sub(ASKED as u32);
        }
    }

    /// The address from which an answer must come: where the oldest unanswered question was asked. When all
    /// are answered, where the last one was.
    #[inline(always)]
    pub fn answered(&mut self) -> Ip {
        let number = if self.first == self.next { self.next.wrapping_sub(1) } else { self.first };
        if self.first != self.next {
            self.first = self.first.wrapping_add(1);
        }
        self.at[number as usize % ASKED]
    }
}

const _: () = {
    assert!(size_of::<DnsProxy>() == 8);
    assert!(size_of::<DnsClient>() == 32);
    assert!(size_of::<DnsAsked>() == 136);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Endpoint {
        Endpoint { ip: text.parse::<core::net::IpAddr>().unwrap().into(), port: 53 }
    }

    #[test]
    fn every_candidate_is_a_slot_and_no_two_attempts_are_the_same() {
        for text in ["10.96.0.10", "127.0.0.53", "127.0.0.1", "2001:db8::53"] {
            let attempts = if text.contains(':') { ADDRESSES6 - 1 } else { ATTEMPTS };
            for one in 0..attempts {
                let key = slot_key(7, &candidate(&server(text), one)).expect(text);
                for other in 0..one {
                    assert_ne!(Some(key), slot_key(7, &candidate(&server(text), other)), "{text}");
                }
            }
        }
        assert_eq!(candidate(&server("::1"), 5), address6(0));
    }

    #[test]
    fn servers_on_localhost_have_slots_of_their_own() {
        let (local, far) = (candidate(&server("127.0.0.53"), 0), candidate(&server("10.96.0.10"), 0));
        assert_eq!(u32::from_be(local.words[3]) & 0xffff_0000, LOCAL_SERVERS4);
        assert_eq!(SlotKey::new(7, &local), None);
        assert_eq!(slot_key(7, &far), SlotKey::new(7, &far));
        assert!(slot_key(7, &local).unwrap().slot >= SLOTS);
    }

    #[test]
    fn other_addresses_are_no_slots() {
        for text in ["10.0.0.1", "127.0.0.1", "::1", "fd72:6564:6972:0:0:53:0:8", "127.127.128.1"] {
            assert_eq!(slot_key(7, &server(text).ip), None, "{text}");
        }
    }

    #[test]
    fn answers_are_attributed_in_the_order_of_the_questions() {
        let mut asked = DnsAsked::once(Ip::v4(1));
        asked.asked(Ip::v4(2));
        assert_eq!((asked.answered(), asked.answered()), (Ip::v4(1), Ip::v4(2)));
        assert_eq!(asked.answered(), Ip::v4(2), "where the last question was asked");
        asked.asked(Ip::v4(3));
        assert_eq!(asked.answered(), Ip::v4(3));
    }

    #[test]
    fn too_many_questions_forget_the_oldest() {
        let mut asked = DnsAsked { first: u32::MAX - 2, next: u32::MAX - 2, at: [Ip::NONE; ASKED] };
        for number in 0..20 {
            asked.asked(Ip::v4(number));
        }
        assert_eq!(asked.answered(), Ip::v4(20 - ASKED as u32));
    }
}
