//! Tries a connection in a world and looks at it from both ends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::protocol::Datagram;
use harness::{Errno, Family, Seen, Socket};

use crate::outcome::{Outcome, Reached, Server};
use crate::scenario::{Connection, Kind};
use crate::world::World;

/// How long the handshake may take before it counts as silence, in milliseconds: inside one machine it takes
/// less than one, and a lost SYN is not sent again before a second is over.
const HANDSHAKE_MS: i64 = 700;
/// How long somebody may take to say what he saw, in milliseconds.
const ANSWER_MS: u16 = 3000;
/// How long a datagram may be under way.
const DATAGRAM: Duration = Duration::from_millis(400);
/// How long its answer may be under way, in milliseconds.
const DATAGRAM_BACK_MS: u16 = 150;

impl World<'_> {
    /// Tries a connection.
    pub(crate) fn attempt(&self, connection: &Connection) -> Outcome {
        let tried = match connection.kind {
            Kind::Tcp | Kind::Mptcp => self.tcp(connection),
            Kind::UdpConnected | Kind::UdpUnconnected | Kind::UdpDissolved => self.udp(connection),
        };
        let outcome = tried.unwrap_or_else(Outcome::Failed);
        if !matches!(outcome, Outcome::Reached(_)) {
            self.forget_seen();
        }
        outcome
    }

    fn tcp(&self, connection: &Connection) -> Result<Outcome, Errno> {
        let client = self.client(connection.who);
        let socket = match connection.kind {
            Kind::Mptcp => client.mptcp(connection.family_of_socket())?,
            _ => client.tcp(connection.family_of_socket()),
        };
        let patience = libc::timeval { tv_sec: 0, tv_usec: HANDSHAKE_MS * 1000 };
        let bytes = [patience.tv_sec.to_ne_bytes(), patience.tv_usec.to_ne_bytes()].concat();
        socket.set_option_bytes(libc::SOL_SOCKET, libc::SO_SNDTIMEO, &bytes)?;
        bind(&socket, connection);
        match socket.connect(connection.written(connection.to)) {
            Err(Errno::EINPROGRESS) => return Ok(Outcome::Silence),
            other => other?,
        }
        let seen = told(&socket)?;
        let own = socket.sockname();
        Ok(Outcome::Reached(Reached {
            server: self.who_saw(&seen),
            local: Some(canonical(seen.local)),
            original_dst: Some(seen.original_dst.map_err(Errno::from_raw)),
            client: canonical(seen.client).ip(),
            port_kept: seen.client.port() == own.port(),
            own: own.ip(),
            peername: socket.peername(),
            answer: None,
            first: None,
        }))
    }

    fn udp(&self, connection: &Connection) -> Result<Outcome, Errno> {
        let socket = self.client(connection.who).udp(connection.family_of_socket());
        bind(&socket, connection);
        let earlier = match connection.first {
            Some(first) => {
                Some(self.ask(&socket, connection, SocketAddr::new(first, connection.to.port()))?)
            }
            None => None,
        };
        if connection.kind == Kind::UdpDissolved {
            socket.dissolve()?;
        }
        let asked = self.ask(&socket, connection, connection.to)?;
        let Some((server, at, datagram)) = &asked.arrived else {
            return match socket.receive_within(64, 0) {
                Err(Errno::EAGAIN) => Ok(Outcome::Silence),
                Err(errno) => Err(errno),
                Ok(datagram) => panic!("an answer to a question that did not arrive: {datagram:?}"),
            };
        };
        at.answer(datagram, &asked.question)?;
        let answer = asked.answer(&socket);
        // A connected socket does not hear the one that it was connected to before.
        let first = earlier.and_then(|asked| {
            let (_, at, datagram) = asked.arrived.as_ref()?;
            Some(at.answer(datagram, &asked.question).and_then(|_| asked.answer(&socket)))
        });
        let client = datagram.from.expect("a datagram has a sender");
        let own = socket.sockname();
        Ok(Outcome::Reached(Reached {
            server: *server,
            local: None,
            original_dst: None,
            client: client.ip(),
            port_kept: client.port() == own.port(),
            own: own.ip(),
            peername: socket.peername(),
            answer: Some(answer),
            first,
        }))
    }

    /// Asks somebody a question that was never asked before.
    fn ask(&self, socket: &Socket, connection: &Connection, to: SocketAddr) -> Result<Question<'_>, Errno> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let question = NUMBER.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
        let written = connection.written(to);
        let earlier = connection.first.is_some() && to != connection.to;
        match connection.kind {
            Kind::UdpConnected => socket.connect(written).and_then(|()| socket.send(&question))?,
            Kind::UdpDissolved if earlier => socket.connect(written).and_then(|()| socket.send(&question))?,
            _ => socket.send_to(&question, written)?,
        };
        Ok(Question { question, arrived: self.arrival(to, &question) })
    }

    /// The server that this very datagram arrives at.
    fn arrival(&self, to: SocketAddr, question: &[u8]) -> Option<(Server, &Socket, Datagram)> {
        let deadline = Instant::now() + DATAGRAM;
        let candidates = self.udp_candidates(to.port(), Family::of(&to.ip()));
        while Instant::now() < deadline {
            for (server, socket) in &candidates {
                if let Ok(datagram) = socket.receive_within(64, 0)
                    && datagram.data == question
                {
                    return Some((*server, socket, datagram));
                }
            }
        }
        None
    }
}

/// A question, and who got it.
struct Question<'w> {
    question: [u8; 8],
    arrived: Option<(Server, &'w Socket, Datagram)>,
}

impl Question<'_> {
    /// Who answered, as the asking socket has it.
    fn answer(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        let datagram = socket.receive_within(64, DATAGRAM_BACK_MS)?;
        assert_eq!(datagram.data, self.question, "the answer to another question");
        Ok(datagram.from.expect("a datagram has a sender"))
    }
}

/// An IPv4 address as such, also when it was read from an IPv6 socket.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn bind(socket: &Socket, connection: &Connection) {
    if connection.source.is_none() && connection.port == 0 {
        return;
    }
    let any =
        if connection.to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let address = connection.written(SocketAddr::new(connection.source.unwrap_or(any), connection.port));
    socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
    socket.bind(address).unwrap_or_else(|error| panic!("{connection}: bind to {address}: {error}"));
}

/// The line that every server sends first: what it sees.
fn told(socket: &Socket) -> Result<Seen, Errno> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let part = socket.receive_within(4096, ANSWER_MS)?.data;
        if part.is_empty() {
            return Err(Errno::ECONNABORTED);
        }
        line.extend(part);
    }
    Ok(serde_json::from_slice(&line).expect("what a server tells is a `Seen`"))
}
