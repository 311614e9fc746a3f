//! The sidecar's DNS proxy: answers every question, from the address at which it was asked (IP_PKTINFO), as
//! Istio's agent and Envoy do. With `--plain` it answers as a program that knows nothing of IP_PKTINFO, from
//! what its socket is bound to.
//!
//! It prints `ready`, and a line for each question: protocol, the client's address, and where it came in.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use crate::message::{self, Wish};

/// Serves until the process is ended.
pub(crate) fn serve(arguments: &[&str]) -> Result<()> {
    let plain = arguments.first() == Some(&"--plain");
    let mut threads = Vec::new();
    for address in &arguments[usize::from(plain)..] {
        let address: SocketAddr = address.parse().with_context(|| format!("{address} is not an address"))?;
        let udp = open(address).with_context(|| format!("bind UDP {address}"))?;
        let tcp = TcpListener::bind(address).with_context(|| format!("bind TCP {address}"))?;
        threads.push(std::thread::spawn(move || serve_udp(&udp, plain)));
        threads.push(std::thread::spawn(move || serve_tcp(&tcp)));
    }
    println!("ready");
    for thread in threads {
        thread.join().expect("a server does not panic")?;
    }
    Ok(())
}

/// A socket as Go's `net` opens it: an IPv6 one is not IPV6_V6ONLY, and nothing says SO_REUSEADDR.
fn open(address: SocketAddr) -> Result<UdpSocket> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd: OwnedFd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(fd))
}

/// A question that waits for its answer: its client, and from where.
struct Pending {
    question: Vec<u8>,
    client: SocketAddr,
    at: IpAddr,
}

fn serve_udp(socket: &UdpSocket, plain: bool) -> Result<()> {
    let mut held: Vec<Pending> = Vec::new();
    loop {
        let asked = receive(socket)?;
        println!("udp {} at {}", asked.client, asked.at);
        match message::wish(&asked.question) {
            Wish::Drop => {}
            Wish::Hold => held.push(asked),
            Wish::Answer => {
                reply(socket, &asked, plain);
                held.drain(..).for_each(|asked| reply(socket, &asked, plain));
            }
        }
    }
}

fn receive(socket: &UdpSocket) -> Result<Pending> {
    let mut buffer = [0; 1500];
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let got =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let client = got.address.as_ref().and_then(address).context("a datagram without a sender")?;
    let at = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
        _ => None,
    });
    let (length, at) = (got.bytes, at.context("a datagram without IP_PKTINFO")?);
    Ok(Pending { question: buffer[..length].to_vec(), client, at })
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Sends an answer; one that cannot be sent is said, and the next question gets its chance.
fn reply(socket: &UdpSocket, asked: &Pending, plain: bool) {
    let answer = message::answer(&asked.question);
    let slices = [IoSlice::new(&answer)];
    let (v4, v6);
    let control = match asked.at {
        _ if plain => None,
        IpAddr::V4(ip) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let none = libc::in_addr { s_addr: 0 };
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        IpAddr::V6(ip) => {
            let source = libc::in6_addr { s6_addr: ip.octets() };
            v6 = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
    };
    let to = SockaddrStorage::from(asked.client);
    if let Err(error) = sendmsg(socket.as_raw_fd(), &slices, control.as_slice(), MsgFlags::empty(), Some(&to))
    {
        println!("unanswered {} at {}: {error}", asked.client, asked.at);
    }
}

fn serve_tcp(listener: &TcpListener) -> Result<()> {
    for stream in listener.incoming() {
        // A client that goes away is no reason to stop.
        let _ = answer_stream(stream?);
    }
    Ok(())
}

fn answer_stream(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    println!("tcp {} at {}", stream.peer_addr()?, stream.local_addr()?.ip());
    let answer = message::answer(&question);
    stream.write_all(&[&(answer.len() as u16).to_be_bytes(), &answer[..]].concat())?;
    Ok(())
}
