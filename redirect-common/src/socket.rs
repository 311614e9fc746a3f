//! What is kept about one socket, or about one handshake: it dies with the socket, or within a moment.

use crate::addr::{Endpoint, Family};
use crate::kept::Key;

/// A socket's own end of its connection. A type of its own, like [`Peer`], because both sides of a handshake
/// name the same pair of ends, each in its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own(pub Endpoint);

/// The other end of a socket's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub Endpoint);

/// A handshake inside the pod that is under way: of the application with the sidecar, on the detour, or of
/// the sidecar with the application, in TPROXY mode. The two are in tables of their own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandoffKey {
    /// The pod: cookie of its network namespace (127.0.0.1:port repeats in every pod).
    pub cookie: u64,
    dialling: Endpoint,
    accepting: Endpoint,
}

impl HandoffKey {
    /// The handshake as the socket sees it that dials.
    #[must_use]
    #[inline(always)]
    pub const fn of_dialling(cookie: u64, own: Own, peer: Peer) -> HandoffKey {
        HandoffKey { cookie, dialling: own.0, accepting: peer.0 }
    }

    /// The same handshake as the accepted socket sees it.
    #[must_use]
    #[inline(always)]
    pub const fn of_accepted(cookie: u64, own: Own, peer: Peer) -> HandoffKey {
        HandoffKey { cookie, dialling: peer.0, accepting: own.0 }
    }
}

impl Key for HandoffKey {
    #[inline(always)]
    fn same(&self, other: &HandoffKey) -> bool {
        self.cookie == other.cookie
            && self.dialling.same(&other.dialling)
            && self.accepting.same(&other.accepting)
    }
}

/// How many handshakes of a pod on the detour may be under way: an eighth of HANDOFF.
pub const HANDSHAKES_PER_POD: u64 = 8192;

/// How many connections of a pod's sidecar to its application may be under way in TPROXY mode: a 32nd of
/// CLIENTS. A sidecar that connects with data in its SYN may get to twice as many.
pub const CLIENTS_PER_POD: u64 = 4096;

/// How many sockets of a pod that listen on ephemeral ports are noted: a sixteenth of LISTENING. Those that
/// attach notes, because they listened before, are counted too.
pub const LISTENING_PER_POD: u64 = 4096;

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

/// How many places there are per pod, port and family. When all are taken the next socket takes one of them
/// over, so the newest sockets are always known, and with any of a group of SO_REUSEPORT sockets the kernel
/// finds them all.
pub const LISTENER_PLACES: u32 = 16;

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
    /// The true destination.
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
    /// A socket on one of the proxy's ports that is not the proxy's: never given the pod's traffic. Attach
    /// finds it listening; later `bind()` is refused.
    pub const FOREIGN: u32 = 2;
    /// An accepted socket of the sidecar; `dst` is the original destination.
    pub const ACCEPTED: u32 = 3;
    /// A client socket whose connection was left alone for a reason that the guard cannot see in the packet.
    pub const PASSED: u32 = 4;
    /// A socket of the proxy that asked for IP_TRANSPARENT or IPV6_TRANSPARENT (TPROXY mode).
    pub const TRANSPARENT: u32 = 5;
    /// Such a socket, bound to the address of a client; `dst` is the client. Its port is 0 until the
    /// connection has one, if the proxy left it open.
    pub const PRETENDER: u32 = 6;
    /// An accepted socket of the application whose client the sidecar pretended to be; `dst` is the client.
    pub const SHOWN: u32 = 7;

    /// Whether a socket is one with which the proxy may go on to the application: its calls to its own pod
    /// are no self-calls, and no `connect()` takes the role from it.
    #[must_use]
    #[inline(always)]
    pub const fn is_transparent(role: u32) -> bool {
        role == TRANSPARENT || role == PRETENDER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ip;

    #[test]
    fn both_sides_of_a_handshake_make_the_same_key() {
        let (app, sidecar) = (Endpoint { ip: Ip::v4(1), port: 53 }, Endpoint { ip: Ip::v4(2), port: 15001 });
        let client = HandoffKey::of_dialling(7, Own(app), Peer(sidecar));
        assert_eq!(client, HandoffKey::of_accepted(7, Own(sidecar), Peer(app)));
        assert_ne!(client, HandoffKey::of_accepted(7, Own(app), Peer(sidecar)));
    }
}
