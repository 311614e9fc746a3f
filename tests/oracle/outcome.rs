//! What came of a connection, and in what two worlds can differ about it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use harness::Errno;

/// Who got a connection or a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    /// The sidecar, on one of its two ports.
    Sidecar(u16),
    /// The DNS proxy.
    DnsProxy,
    /// A server in the pod, on the port that it listens on.
    Pod(u16),
    /// A server in the other pod.
    Peer(u16),
}

impl Server {
    /// What kind of server, without its port.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Server::Sidecar(15001) => "outbound listener",
            Server::Sidecar(_) => "inbound listener",
            Server::DnsProxy => "DNS proxy",
            Server::Pod(_) => "server in the pod",
            Server::Peer(_) => "server in the other pod",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody got it.
    Reached(Reached),
    /// A system call of the client failed.
    Failed(Errno),
    /// There was no answer.
    Silence,
}

/// What both ends saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) server: Server,
    /// `getsockname()` of the accepted socket; TCP only.
    pub(crate) local: Option<SocketAddr>,
    /// What the server read as SO_ORIGINAL_DST; TCP only.
    pub(crate) original_dst: Option<Result<SocketAddr, Errno>>,
    /// The client's address as the server saw it.
    pub(crate) client: IpAddr,
    /// Whether the server saw the very port that the client has.
    pub(crate) port_kept: bool,
    /// The client's `getsockname()`, without the port.
    pub(crate) own: IpAddr,
    /// The client's `getpeername()`.
    pub(crate) peername: Result<SocketAddr, Errno>,
    /// Where the answer came from, as the client saw it; UDP only.
    pub(crate) answer: Option<Result<SocketAddr, Errno>>,
    /// The same for the one who was asked first.
    pub(crate) first: Option<Result<SocketAddr, Errno>>,
}

/// One thing that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    /// Reached, failed (and with which errno), or silence.
    Ending,
    Server,
    Local,
    OriginalDst,
    Client,
    Own,
    PeerName,
    Answer,
    /// In our world: from what `redirect explain` says.
    Foretold,
}

/// The fields in which two outcomes differ. When not even the server is the same, the rest says nothing.
pub(crate) fn differing(one: &Outcome, other: &Outcome) -> Vec<Field> {
    let (Outcome::Reached(a), Outcome::Reached(b)) = (one, other) else {
        return if one == other { Vec::new() } else { vec![Field::Ending] };
    };
    if a.server != b.server {
        return vec![Field::Server];
    }
    let compared = [
        (Field::Local, a.local == b.local),
        (Field::OriginalDst, a.original_dst == b.original_dst),
        (Field::Client, (a.client, a.port_kept) == (b.client, b.port_kept)),
        (Field::Own, a.own == b.own),
        (Field::PeerName, a.peername == b.peername),
        (Field::Answer, (&a.answer, &a.first) == (&b.answer, &b.first)),
    ];
    compared.into_iter().filter(|(_, same)| !same).map(|(field, _)| field).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome::Reached(reached) = self else { return write!(f, "{self:?}") };
        write!(f, "{:?}, client {}", reached.server, reached.client)?;
        if !reached.port_kept {
            write!(f, " (another port)")?;
        }
        write!(f, ", own {}, peername {:?}", reached.own, reached.peername)?;
        if let (Some(local), Some(original)) = (reached.local, &reached.original_dst) {
            write!(f, ", accepted at {local}, original destination {original:?}")?;
        }
        for answer in reached.answer.iter().chain(&reached.first) {
            write!(f, ", answer from {answer:?}")?;
        }
        Ok(())
    }
}
