//! What a test and the agent in a pod say to each other: one JSON line per request, one per answer.
//!
//! A request is one system call, so a test scripts exactly what an application would do; a few bulk requests
//! are there because a round trip for each of 40,000 connections takes too long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A descriptor in the agent's process.
pub type Fd = i32;

/// What a test asks of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// `socket()`; answers with a [`Fd`].
    Socket {
        /// AF_INET6 rather than AF_INET.
        v6: bool,
        /// Type and protocol.
        transport: Transport,
        /// SOCK_NONBLOCK.
        nonblocking: bool,
    },
    /// `bind()`
    Bind {
        /// The socket.
        fd: Fd,
        /// Where to.
        address: SocketAddr,
    },
    /// `connect()`
    Connect {
        /// The socket.
        fd: Fd,
        /// Where to.
        address: SocketAddr,
    },
    /// `listen()`
    Listen {
        /// The socket.
        fd: Fd,
    },
    /// `accept()`; answers with a [`Fd`].
    Accept {
        /// The listening socket.
        fd: Fd,
    },
    /// `getsockname()`; answers with a `SocketAddr`.
    SockName {
        /// The socket.
        fd: Fd,
    },
    /// `getpeername()`; answers with a `SocketAddr`.
    PeerName {
        /// The socket.
        fd: Fd,
    },
    /// `getsockopt()`; answers with an [`OptionBytes`].
    GetOption {
        /// The socket.
        fd: Fd,
        /// The level, as a number.
        level: i32,
        /// The option, as a number.
        name: i32,
        /// What the buffer holds before the call, which also says how long it is.
        buffer: Vec<u8>,
    },
    /// `setsockopt()`
    SetOption {
        /// The socket.
        fd: Fd,
        /// The level, as a number.
        level: i32,
        /// The option, as a number.
        name: i32,
        /// The value, in the machine's byte order.
        value: Vec<u8>,
    },
    /// `send()` or `sendto()`; answers with the bytes sent.
    Send {
        /// The socket.
        fd: Fd,
        /// What to send.
        data: Vec<u8>,
        /// Where to, on a socket that is not connected.
        to: Option<SocketAddr>,
        /// From which address of this host (IP_PKTINFO, IPV6_PKTINFO); the kernel's choice without.
        from: Option<IpAddr>,
    },
    /// `connect()` with AF_UNSPEC, which undoes an earlier one.
    Dissolve {
        /// The socket.
        fd: Fd,
    },
    /// `recvmsg()`; answers with a [`Datagram`]. Waits for `patience_ms` at most, then `EAGAIN`.
    Receive {
        /// The socket.
        fd: Fd,
        /// At most so many bytes.
        size: usize,
        /// How long to wait.
        patience_ms: u16,
    },
    /// Waits until a non-blocking `connect()` is over and answers with its SO_ERROR.
    AwaitConnect {
        /// The socket.
        fd: Fd,
    },
    /// `setresgid()` and `setresuid()`, which leave a way back to root; of a process that is root.
    Become {
        /// Real user and group id.
        real: u32,
        /// Effective user and group id.
        effective: u32,
    },
    /// `close()`
    Close {
        /// The socket.
        fd: Fd,
    },
    /// Opens `count` TCP connections, round robin over `to`, and holds them; answers with an [`Opened`].
    OpenMany {
        /// The destinations.
        to: Vec<SocketAddr>,
        /// How many.
        count: usize,
    },
    /// Closes what [`Request::OpenMany`] opened, with a reset so that no TIME_WAIT is left.
    CloseMany,
    /// Listens on TCP and serves in the background from then on.
    Serve {
        /// Where to listen.
        listen: Vec<SocketAddr>,
        /// What to do with a connection.
        service: Service,
        /// IPv6 sockets take IPv4 as well (no IPV6_V6ONLY).
        dual_stack: bool,
        /// The listening sockets are transparent (IP_TRANSPARENT, IPV6_TRANSPARENT).
        transparent: bool,
    },
    /// Connects to each address in turn, over TCP, in the background from then on.
    DialEvery {
        /// The destinations.
        to: Vec<SocketAddr>,
        /// The time from one attempt to the next.
        pause_ms: u64,
    },
    /// Answers with the [`Dialled`] since the last such request.
    TakeDialled,
    /// Answers with the [`Seen`] of all connections accepted since the last such request.
    TakeSeen,
}

/// What kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// SOCK_STREAM
    Tcp,
    /// SOCK_STREAM, IPPROTO_MPTCP
    Mptcp,
    /// SOCK_DGRAM
    Udp,
}

/// What a server does with a connection that it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Sends one line, the [`Seen`] of the connection, and keeps it open.
    Tell,
    /// Sends everything back.
    Echo,
    /// Closes it with a reset: for very many.
    Hangup,
    /// Answers each HTTP request with the client's address, as `getpeername()` has it, and keeps the
    /// connection.
    Http,
    /// Connects to the original destination and passes bytes both ways, as a sidecar does.
    Forward,
    /// The same with the client's address as its own, on transparent sockets, as a sidecar in TPROXY mode
    /// does.
    Imitate,
}

/// A connection as the accepting side sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The port that the accepting socket was opened for: 15001, 15006, ...
    pub listener: u16,
    /// `getsockname()` of the accepted socket.
    pub local: SocketAddr,
    /// `getpeername()` of the accepted socket.
    pub client: SocketAddr,
    /// SO_ORIGINAL_DST as Envoy asks for it (level by the local address, buffer of 128 bytes), or its errno.
    pub original_dst: Result<SocketAddr, i32>,
}

/// What `getsockopt()` left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionBytes {
    /// The length that the kernel reported.
    pub len: u32,
    /// The whole buffer; where the caller gave only a size, bytes that were not written are still
    /// [`UNTOUCHED`].
    pub buffer: Vec<u8>,
}

/// What a `getsockopt()` buffer is filled with before the call.
pub const UNTOUCHED: u8 = 0xa5;

/// What `recvmsg()` brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// The bytes; none at the end of a stream.
    pub data: Vec<u8>,
    /// Who sent it; absent on a connected stream.
    pub from: Option<SocketAddr>,
    /// The address of this host that it was sent to, where the socket has IP_PKTINFO or IPV6_RECVPKTINFO.
    pub at: Option<IpAddr>,
}

/// How far [`Request::OpenMany`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Connections opened by this request.
    pub count: usize,
    /// Why it stopped early, an errno.
    pub error: Option<i32>,
}

/// What became of the attempts of [`Request::DialEvery`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialled {
    /// Somebody accepted.
    pub accepted: usize,
    /// It was refused, or nothing came back in time.
    pub failed: usize,
    /// Why the last of these failed, an errno.
    pub error: Option<i32>,
}

/// Decodes a `sockaddr_in` or `sockaddr_in6` as it lies in memory.
#[must_use]
pub fn decode_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}
