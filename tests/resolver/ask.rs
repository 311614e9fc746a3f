//! The ways in which applications ask DNS servers, one function each. What is printed does not depend on the
//! capture being ours or iptables', but for what an application could notice: ids of answers, who they came
//! from, its own addresses.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use harness::Family;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendmsg, socket,
};

use crate::message;

/// How long an answer may take. A name that is not answered at all costs this once.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long the proxy gets to see a question before the next one is asked.
const PAUSE: Duration = Duration::from_millis(60);
/// `linux/in.h` and `linux/in6.h`
const IP_UNICAST_IF: i32 = 50;
const IPV6_UNICAST_IF: i32 = 76;

/// Asks and prints what came of it.
pub(crate) fn ask(way: &str, servers: &[&str]) -> Result<()> {
    let servers: Vec<SocketAddr> = servers
        .iter()
        .map(|text| text.parse().with_context(|| format!("{text} is not an address")))
        .collect::<Result<_>>()?;
    let (&[first, second, elsewhere], family) =
        (servers.first_chunk().context("two servers and another address")?, Family::of(&servers[0].ip()));
    let asker = Asker { socket: unbound(family)? };
    match way {
        "order" => asker.order(first, second),
        "lost" => asker.lost(first, second),
        "peek" => asker.peek(first, second),
        "unnamed" => asker.unnamed(first, second),
        "connected" => asker.connected(first),
        "dissolve" => asker.dissolve(first, second),
        "reconnect" => asker.reconnect(first, elsewhere),
        "connected-elsewhere" => asker.connected_elsewhere(first, second),
        "unicast-if" => asker.unicast_if(first),
        "unicast-if-connected" => asker.unicast_if_connected(first),
        "packet-info" => asker.packet_info(first),
        "stream" => stream(first),
        "time" => asker.time(first),
        _ => bail!("there is no way called {way}"),
    }
}

fn unbound(family: Family) -> Result<UdpSocket> {
    let family = if family == Family::V6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = UdpSocket::from(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?);
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

struct Asker {
    socket: UdpSocket,
}

impl Asker {
    fn send(&self, id: u16, name: &str, to: SocketAddr) -> Result<()> {
        self.socket.send_to(&message::question(id, name), to).with_context(|| format!("ask {to}"))?;
        std::thread::sleep(PAUSE);
        Ok(())
    }

    /// Prints the next answer and who it came from.
    fn answer(&self) {
        let mut buffer = [0; 512];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => println!("answer {} from {from}", message::id(&buffer[..length])),
            Err(error) => println!("no answer: {:?}", error.kind()),
        }
    }

    /// The address of this end, without the port, which the kernel chose.
    fn own(&self) -> Result<()> {
        println!("own {}", self.socket.local_addr()?.ip());
        Ok(())
    }

    fn peer(&self) {
        match self.socket.peer_addr() {
            Ok(peer) => println!("peer {peer}"),
            Err(error) => println!("no peer: {:?}", error.kind()),
        }
    }

    /// The second server answers first.
    fn order(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.send(1, "hold", first)?;
        self.send(2, "now", second)?;
        self.answer();
        self.answer();
        self.own()
    }

    /// The first server's answer is lost.
    fn lost(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.send(1, "drop", first)?;
        self.send(2, "now", second)?;
        self.answer();
        self.send(3, "now", first)?;
        self.answer();
        Ok(())
    }

    /// MSG_PEEK before every read, as some resolvers do to learn an answer's size.
    fn peek(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.send(1, "now", first)?;
        self.send(2, "now", second)?;
        for _ in 0..2 {
            let mut buffer = [0; 512];
            let (length, from) = self.socket.peek_from(&mut buffer)?;
            println!("peek {} from {from}", message::id(&buffer[..length]));
            self.answer();
        }
        Ok(())
    }

    /// `recv()`, which asks for no address, before `recvfrom()`.
    fn unnamed(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.send(1, "now", first)?;
        let mut buffer = [0; 512];
        let length = self.socket.recv(&mut buffer)?;
        println!("answer {}", message::id(&buffer[..length]));
        self.send(2, "now", second)?;
        self.answer();
        Ok(())
    }

    fn connected(&self, server: SocketAddr) -> Result<()> {
        self.socket.connect(server)?;
        self.peer();
        self.own()?;
        self.socket.send(&message::question(1, "now"))?;
        self.answer();
        Ok(())
    }

    /// `connect(first)`, `connect(AF_UNSPEC)`, `sendto(second)`.
    fn dissolve(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.connected(first)?;
        let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        // SAFETY: the kernel reads one sockaddr, which outlives the call.
        let result = unsafe {
            libc::connect(self.socket.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as u32)
        };
        Errno::result(result).context("dissolve")?;
        self.own()?;
        self.peer();
        self.send(2, "now", second)?;
        self.answer();
        Ok(())
    }

    /// `bind(any)`, `connect(server)`, `connect(elsewhere)`.
    fn reconnect(&self, server: SocketAddr, elsewhere: SocketAddr) -> Result<()> {
        let any = if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        nix::sys::socket::bind(self.socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, 0)))?;
        self.connected(server)?;
        self.socket.connect(elsewhere).context("connect elsewhere")?;
        self.own()?;
        self.peer();
        Ok(())
    }

    /// A socket that is connected to one server asks another: the kernel takes no answer from there.
    fn connected_elsewhere(&self, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.connected(first)?;
        self.send(2, "now", second)?;
        self.answer();
        self.socket.send(&message::question(3, "now"))?;
        self.answer();
        Ok(())
    }

    /// `IP_UNICAST_IF`: the interface is chosen for the socket, as systemd-resolved does.
    fn choose_interface(&self, family: Family) -> Result<()> {
        let index = interface().to_be();
        let (level, name) = if family == Family::V6 {
            (libc::IPPROTO_IPV6, IPV6_UNICAST_IF)
        } else {
            (libc::IPPROTO_IP, IP_UNICAST_IF)
        };
        // SAFETY: the kernel reads four bytes of `index`, which outlives the call.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, name, (&raw const index).cast(), 4) };
        Errno::result(result).context("IP_UNICAST_IF")?;
        Ok(())
    }

    fn unicast_if(&self, server: SocketAddr) -> Result<()> {
        self.choose_interface(Family::of(&server.ip()))?;
        self.send(1, "now", server)?;
        self.answer();
        Ok(())
    }

    fn unicast_if_connected(&self, server: SocketAddr) -> Result<()> {
        self.choose_interface(Family::of(&server.ip()))?;
        self.connected(server)
    }

    /// `IP_PKTINFO` with an interface: it is chosen for one datagram.
    fn packet_info(&self, server: SocketAddr) -> Result<()> {
        let index = interface();
        let none = libc::in_addr { s_addr: 0 };
        let v4 = libc::in_pktinfo { ipi_ifindex: index as i32, ipi_spec_dst: none, ipi_addr: none };
        let v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: [0; 16] }, ipi6_ifindex: index };
        let control = if server.is_ipv6() {
            ControlMessage::Ipv6PacketInfo(&v6)
        } else {
            ControlMessage::Ipv4PacketInfo(&v4)
        };
        let question = message::question(1, "now");
        let to = SockaddrStorage::from(server);
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&question)],
            &[control],
            MsgFlags::empty(),
            Some(&to),
        )
        .context("sendmsg with IP_PKTINFO")?;
        self.answer();
        Ok(())
    }

    /// Microseconds for a question and its answer: on a socket of its own, and one after the other on one
    /// socket.
    fn time(&self, server: SocketAddr) -> Result<()> {
        const ROUNDS: u32 = 20_000;
        let question = message::question(1, "now");
        let mut buffer = [0; 512];
        let start = Instant::now();
        for _ in 0..ROUNDS {
            self.socket.send_to(&question, server)?;
            self.socket.recv_from(&mut buffer)?;
        }
        let one = start.elapsed() / ROUNDS;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let socket = unbound(Family::of(&server.ip()))?;
            socket.connect(server)?;
            socket.send(&question)?;
            socket.recv(&mut buffer)?;
        }
        let fresh = start.elapsed() / ROUNDS;
        println!("one socket {} ns, a new connected socket each {} ns", one.as_nanos(), fresh.as_nanos());
        Ok(())
    }
}

/// The index of `eth0`.
fn interface() -> u32 {
    nix::net::if_::if_nametoindex("eth0").unwrap_or(0)
}

/// DNS over TCP, from a port that the socket is bound to before it connects.
fn stream(server: SocketAddr) -> Result<()> {
    let any = if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let family = if server.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    for bound in [false, true] {
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if bound {
            nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, 0)))?;
        }
        if let Err(errno) = connect(fd.as_raw_fd(), &SockaddrStorage::from(server)) {
            println!("not connected: {errno:?}");
            continue;
        }
        let mut stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE))?;
        println!("peer {} own {}", stream.peer_addr()?, stream.local_addr()?.ip());
        let question = message::question(7, "now");
        stream.write_all(&[&(question.len() as u16).to_be_bytes(), &question[..]].concat())?;
        let mut answer = [0; 512];
        let length = stream.read(&mut answer)?;
        println!("answer {}", message::id(&answer[2..length.max(2)]));
    }
    Ok(())
}
