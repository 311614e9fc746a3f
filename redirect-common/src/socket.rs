//! What is kept about one socket, or about one handshake: it dies with the socket, or within a moment.

use crate::addr::{Endpoint, Family};

/// A socket's own end of its connection. A type of its own, like [`Peer`], because both sides of a handshake
/// name the same pair of ends, each in its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own(pub Endpoint);

/// The other end of a socket's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub Endpoint);

/// A loopback handshake between the application and the sidecar that is under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandoffKey {
    /// The pod: cookie of its network namespace (127.0.0.1:port repeats in every pod).
    pub cookie: u64,
    client: Endpoint,
    sidecar: Endpoint,
}

impl HandoffKey {
    /// The handshake as the application's socket sees it.
    #[must_use]
    #[inline(always)]
    pub const fn of_client(cookie: u64, own: Own, peer: Peer) -> HandoffKey {
        HandoffKey { cookie, client: own.0, sidecar: peer.0 }
    }

    /// The same handshake as the sidecar's accepted socket sees it.
    #[must_use]
    #[inline(always)]
    pub const fn of_sidecar(cookie: u64, own: Own, peer: Peer) -> HandoffKey {
        HandoffKey { cookie, client: peer.0, sidecar: own.0 }
    }
}

/// A place for a listening socket of the sidecar. Several per listener, because SO_REUSEPORT workers each
/// have a socket and closing one must not make the sidecar unknown.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// The listening port, host byte order.
    pub port: u32,
    /// Family (4 or 6) in the low byte, number of the place above it.
    pub place: u32,
}

/// How many places there are per pod, port and family.
pub const LISTENER_PLACES: u32 = 4;

impl ListenerKey {
    /// The key of a place for the listeners of a family on `port`.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, port: u32, family: Family, place: u32) -> ListenerKey {
        ListenerKey { cookie, port, place: family.number() | place << 8 }
    }
}

/// Where a socket's connection was meant to go: what we keep in the socket where no address tells it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The true destination. Meaningless for listeners.
    pub dst: Endpoint,
    /// What the socket is, see [`role`].
    pub role: u32,
}

/// Values of [`Origin::role`].
pub mod role {
    /// Not redirected (an origin that a later direct `connect()` cleared).
    pub const NONE: u32 = 0;
    /// A client socket whose `connect()` was rewritten; `dst` is what the application dialled.
    pub const CLIENT: u32 = 1;
    /// A client socket, TCP or UDP, that talks to the DNS proxy; `dst` is the server that the application
    /// dialled.
    pub const DNS_CLIENT: u32 = 2;
    /// The sidecar's inbound listener; accepted sockets inherit the origin (BPF_F_CLONE).
    pub const INBOUND_LISTENER: u32 = 3;
    /// An accepted socket of the sidecar; `dst` is the original destination.
    pub const ACCEPTED: u32 = 4;
}

/// How many datagrams to different servers on one socket are told apart.
pub const DNS_PENDING: usize = 8;

/// The servers that an unconnected UDP socket has asked and that have not answered, oldest first. The DNS
/// proxy answers everything from one address; its answers are attributed in the order of the questions.
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

    /// The server to which an answer is attributed: the one asked first of those that have not answered.
    /// Without any, the one asked last, so that a repeated answer, or one that was only peeked at before,
    /// still has a source.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ip;

    #[test]
    fn both_sides_of_a_handshake_make_the_same_key() {
        let (app, sidecar) = (server(1), Endpoint { ip: Ip::v4(2), port: 15001 });
        let client = HandoffKey::of_client(7, Own(app), Peer(sidecar));
        assert_eq!(client, HandoffKey::of_sidecar(7, Own(sidecar), Peer(app)));
        assert_ne!(client, HandoffKey::of_sidecar(7, Own(app), Peer(sidecar)));
    }

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
}
