//! A socket in a pod: a test calls, the agent makes the system call.

use std::net::SocketAddr;

use nix::errno::Errno;
use redirect_common::Family;

use crate::process::Process;
use crate::protocol::{Datagram, Fd, OptionBytes, Request, Seen, Transport, UNTOUCHED, decode_sockaddr};

/// A socket of a [`Process`], closed when it goes out of scope.
#[derive(Debug)]
pub struct Socket {
    process: Process,
    fd: Fd,
}

/// The two ways to ask for the original destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `SOL_IP`, `SO_ORIGINAL_DST`
    Ip,
    /// `SOL_IPV6`, `IP6T_SO_ORIGINAL_DST`
    Ipv6,
}

impl Level {
    /// Both.
    pub const ALL: [Level; 2] = [Level::Ip, Level::Ipv6];

    /// The numbers for `getsockopt()`.
    fn numbers(self) -> (i32, i32) {
        match self {
            Level::Ip => (libc::SOL_IP, libc::SO_ORIGINAL_DST),
            Level::Ipv6 => (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST),
        }
    }
}

/// How long reading waits for a peer.
const PATIENCE_MS: u16 = 5000;

/// How a process makes sockets.
impl Process {
    /// A TCP socket, IPv6 if `family`.
    #[must_use]
    pub fn tcp(&self, family: Family) -> Socket {
        self.socket(family, Transport::Tcp, false)
    }

    /// A non-blocking TCP socket.
    #[must_use]
    pub fn tcp_nonblocking(&self, family: Family) -> Socket {
        self.socket(family, Transport::Tcp, true)
    }

    /// A UDP socket.
    #[must_use]
    pub fn udp(&self, family: Family) -> Socket {
        self.socket(family, Transport::Udp, false)
    }

    /// An MPTCP socket.
    ///
    /// # Errors
    /// What `socket()` says where there is no MPTCP.
    pub fn mptcp(&self, family: Family) -> Result<Socket, Errno> {
        self.try_socket(family, Transport::Mptcp, false)
    }

    /// A TCP connection to `to` on a socket of that family.
    ///
    /// # Errors
    /// What `connect()` says.
    pub fn connect(&self, to: SocketAddr) -> Result<Socket, Errno> {
        let socket = self.tcp(Family::of(&to.ip()));
        socket.connect(to)?;
        Ok(socket)
    }

    /// A TCP socket that listens at `address`, with SO_REUSEADDR.
    ///
    /// # Errors
    /// What `bind()` or `listen()` says.
    pub fn listen(&self, address: SocketAddr) -> Result<Socket, Errno> {
        let socket = self.tcp(Family::of(&address.ip()));
        socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        socket.bind(address)?;
        socket.listen()?;
        Ok(socket)
    }

    fn socket(&self, family: Family, transport: Transport, nonblocking: bool) -> Socket {
        self.try_socket(family, transport, nonblocking).expect("make a socket")
    }

    fn try_socket(&self, family: Family, transport: Transport, nonblocking: bool) -> Result<Socket, Errno> {
        let fd = self.call(Request::Socket { v6: family == Family::V6, transport, nonblocking })?;
        Ok(Socket::new(self.clone(), fd))
    }
}

impl Socket {
    fn new(process: Process, fd: Fd) -> Socket {
        Socket { process, fd }
    }

    /// `bind()`
    ///
    /// # Errors
    /// What the call says; the same holds for all that follow.
    pub fn bind(&self, address: SocketAddr) -> Result<(), Errno> {
        self.process.call(Request::Bind { fd: self.fd, address })
    }

    /// `connect()`; may be called again on the same socket.
    ///
    /// # Errors
    /// `EINPROGRESS` from a non-blocking socket.
    pub fn connect(&self, address: SocketAddr) -> Result<(), Errno> {
        self.process.call(Request::Connect { fd: self.fd, address })
    }

    /// Waits until a non-blocking `connect()` is over.
    ///
    /// # Errors
    /// The socket's SO_ERROR.
    pub fn await_connect(&self) -> Result<(), Errno> {
        self.process.call(Request::AwaitConnect { fd: self.fd })
    }

    /// `listen()`
    ///
    /// # Errors
    /// What the call says.
    pub fn listen(&self) -> Result<(), Errno> {
        self.process.call(Request::Listen { fd: self.fd })
    }

    /// `accept()`
    ///
    /// # Errors
    /// `EAGAIN` when no connection came within five seconds.
    pub fn accept(&self) -> Result<Socket, Errno> {
        let fd = self.process.call(Request::Accept { fd: self.fd })?;
        Ok(Socket::new(self.process.clone(), fd))
    }

    /// `getsockname()`
    #[must_use]
    pub fn sockname(&self) -> SocketAddr {
        self.process.call(Request::SockName { fd: self.fd }).expect("getsockname")
    }

    /// `getpeername()`
    ///
    /// # Errors
    /// `ENOTCONN`
    pub fn peername(&self) -> Result<SocketAddr, Errno> {
        self.process.call(Request::PeerName { fd: self.fd })
    }

    /// The original destination as a sidecar asks for it, with a buffer of `size` bytes.
    ///
    /// # Errors
    /// What `getsockopt()` says.
    pub fn original_dst_bytes(&self, level: Level, size: u32) -> Result<OptionBytes, Errno> {
        let (level, name) = level.numbers();
        self.option(level, name, size)
    }

    /// The original destination.
    ///
    /// # Errors
    /// What `getsockopt()` says.
    pub fn original_dst(&self, level: Level) -> Result<SocketAddr, Errno> {
        let answer = self.original_dst_bytes(level, 128)?;
        Ok(decode_sockaddr(&answer.buffer).unwrap_or_else(|| panic!("not a socket address: {answer:?}")))
    }

    /// `getsockopt()` with a buffer of `size` bytes.
    ///
    /// # Errors
    /// What the call says.
    pub fn option(&self, level: i32, name: i32, size: u32) -> Result<OptionBytes, Errno> {
        self.option_with(level, name, vec![UNTOUCHED; size as usize])
    }

    /// `getsockopt()` for the options that read the buffer before they write to it.
    ///
    /// # Errors
    /// What the call says.
    pub fn option_with(&self, level: i32, name: i32, buffer: Vec<u8>) -> Result<OptionBytes, Errno> {
        self.process.call(Request::GetOption { fd: self.fd, level, name, buffer })
    }

    /// `setsockopt()` with an `int`.
    ///
    /// # Errors
    /// What the call says.
    pub fn set_option(&self, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        self.set_option_bytes(level, name, &value.to_ne_bytes())
    }

    /// `setsockopt()` with any value.
    ///
    /// # Errors
    /// What the call says.
    pub fn set_option_bytes(&self, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        self.process.call(Request::SetOption { fd: self.fd, level, name, value: value.to_vec() })
    }

    /// `send()`; answers with the number of bytes sent.
    ///
    /// # Errors
    /// What the call says.
    pub fn send(&self, data: &[u8]) -> Result<usize, Errno> {
        self.process.call(Request::Send { fd: self.fd, data: data.to_vec(), to: None, from: None })
    }

    /// `sendto()`
    ///
    /// # Errors
    /// What the call says.
    pub fn send_to(&self, data: &[u8], to: SocketAddr) -> Result<usize, Errno> {
        self.process.call(Request::Send { fd: self.fd, data: data.to_vec(), to: Some(to), from: None })
    }

    /// The answer to a datagram, from the address that it was sent to: the socket asks for it since
    /// [`Socket::tell_destinations`].
    ///
    /// # Errors
    /// What the call says.
    pub fn answer(&self, question: &Datagram, data: &[u8]) -> Result<usize, Errno> {
        self.process.call(Request::Send {
            fd: self.fd,
            data: data.to_vec(),
            to: question.from,
            from: question.at,
        })
    }

    /// From now on datagrams come with the address that they were sent to (IP_PKTINFO, IPV6_RECVPKTINFO).
    ///
    /// # Errors
    /// What the call says.
    pub fn tell_destinations(&self, family: Family) -> Result<(), Errno> {
        match family {
            Family::V4 => self.set_option(libc::SOL_IP, libc::IP_PKTINFO, 1),
            Family::V6 => self.set_option(libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1),
        }
    }

    /// `connect()` with AF_UNSPEC, which undoes an earlier one.
    ///
    /// # Errors
    /// What the call says.
    pub fn dissolve(&self) -> Result<(), Errno> {
        self.process.call(Request::Dissolve { fd: self.fd })
    }

    /// `recvmsg()`
    ///
    /// # Errors
    /// `EAGAIN` when nothing came within five seconds.
    pub fn receive(&self, size: usize) -> Result<Datagram, Errno> {
        self.receive_within(size, PATIENCE_MS)
    }

    /// `recvmsg()`, waiting for `patience_ms` at most.
    ///
    /// # Errors
    /// `EAGAIN` when nothing came.
    pub fn receive_within(&self, size: usize, patience_ms: u16) -> Result<Datagram, Errno> {
        self.process.call(Request::Receive { fd: self.fd, size, patience_ms })
    }

    /// What a server of [`crate::Service::Tell`] tells about this connection.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let part = self.receive(4096).unwrap_or_else(|error| panic!("{}: {error}", self.who())).data;
            assert!(
                !part.is_empty(),
                "{}: the connection ended after {:?}",
                self.who(),
                String::from_utf8_lossy(&line)
            );
            line.extend(part);
        }
        serde_json::from_slice(&line).expect("what a server tells is a `Seen`")
    }

    /// Sends `data` to a server of [`crate::Service::Echo`] and checks that it comes back.
    pub fn expect_echo(&self, data: &[u8]) {
        self.send(data).unwrap_or_else(|error| panic!("{}: send: {error}", self.who()));
        let mut back = Vec::new();
        while back.len() < data.len() {
            let part =
                self.receive(data.len()).unwrap_or_else(|error| panic!("{}: {error}", self.who())).data;
            assert!(!part.is_empty(), "{}: ended after {} bytes", self.who(), back.len());
            back.extend(part);
        }
        assert_eq!(back, data);
    }

    fn who(&self) -> String {
        format!("connection {} -> {:?}", self.sockname(), self.peername())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // While a test fails the agent may be gone already, and a second panic would hide the first.
        if !std::thread::panicking() {
            let _ = self.process.call::<()>(Request::Close { fd: self.fd });
        }
    }
}
