//! Both ends of a connection: servers that tell who they are and what they saw, and clients that tell what
//! they got.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use redirect_common::addr::Family;
use serde::{Deserialize, Serialize};

/// No step waits longer: everything happens on this machine.
pub(super) const PATIENCE: Duration = Duration::from_millis(1000);

/// What a server saw of a connection or a question, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The server's name.
    pub(super) who: String,
    /// `SO_ORIGINAL_DST`, where the kernel gives one.
    pub(super) original: Option<SocketAddr>,
    /// The peer of the accepted socket.
    pub(super) client: SocketAddr,
}

/// What a client got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Got {
    /// Why there is no connection or answer, in words.
    pub(super) error: Option<String>,
    /// The same as an error number.
    pub(super) errno: Option<i32>,
    /// The client's own end (`getsockname()`).
    pub(super) own: Option<SocketAddr>,
    /// The other end as the client sees it (`getpeername()`, or the source of a datagram).
    pub(super) peer: Option<SocketAddr>,
    /// What the server said.
    pub(super) seen: Option<Seen>,
}

impl Got {
    fn failed(error: &io::Error) -> Got {
        Got { error: Some(error.to_string()), errno: error.raw_os_error(), ..Got::default() }
    }
}

/// Connects and reads the server's line.
pub(super) fn dial(to: SocketAddr) -> Got {
    let attempt = || -> io::Result<Got> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (own, peer) = (Some(stream.local_addr()?), Some(stream.peer_addr()?));
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(Got { own, peer, seen: serde_json::from_str(&line).ok(), ..Got::default() })
    };
    attempt().unwrap_or_else(|error| Got::failed(&error))
}

/// Sends a datagram from an unconnected socket and waits for an answer.
pub(super) fn ask(server: SocketAddr, patience: Duration) -> Got {
    let attempt = || -> io::Result<Got> {
        let any =
            if server.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(patience))?;
        socket.send_to(b"?", server)?;
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer)?;
        let seen = serde_json::from_slice(&answer[..length]).ok();
        Ok(Got { own: Some(socket.local_addr()?), peer: Some(from), seen, ..Got::default() })
    };
    attempt().unwrap_or_else(|error| Got::failed(&error))
}

/// Opens a listener on all addresses of one family. (The standard library cannot keep IPv4 out of an IPv6
/// listener.)
pub(super) fn listener(family: Family, port: u16) -> io::Result<TcpListener> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let fd = socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if family == Family::V6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        bind_to(&fd, &SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
    } else {
        bind_to(&fd, &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    }
    listen(&fd, Backlog::new(64)?)?;
    Ok(TcpListener::from(fd))
}

fn bind_to(fd: &OwnedFd, address: &dyn SockaddrLike) -> io::Result<()> {
    Ok(bind(fd.as_raw_fd(), address)?)
}

/// Tells each connection who serves it, for ever.
pub(super) fn serve(listener: &TcpListener, who: &str) {
    for stream in listener.incoming() {
        // A client that has gone is not the server's business.
        let _ = stream.and_then(|mut stream| tell(&mut stream, who));
    }
}

fn tell(stream: &mut TcpStream, who: &str) -> io::Result<()> {
    let seen = Seen { who: who.into(), original: original_dst(stream), client: stream.peer_addr()? };
    writeln!(stream, "{}", serde_json::to_string(&seen)?)
}

/// Answers each datagram with who serves it, for ever.
pub(super) fn answer(socket: &UdpSocket, who: &str) {
    let mut question = [0; 512];
    while let Ok((_, client)) = socket.recv_from(&mut question) {
        let seen = Seen { who: who.into(), original: None, client };
        let _ = socket.send_to(serde_json::to_string(&seen).unwrap_or_default().as_bytes(), client);
    }
}

/// The original destination of an accepted connection.
fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    if stream.local_addr().ok()?.is_ipv6() {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        let port = u16::from_be(raw.sin6_port);
        return Some(SocketAddr::new(Ipv6Addr::from(raw.sin6_addr.s6_addr).into(), port));
    }
    let raw = getsockopt(stream, sockopt::OriginalDst).ok()?;
    let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    Some(SocketAddr::new(ip.into(), u16::from_be(raw.sin_port)))
}
