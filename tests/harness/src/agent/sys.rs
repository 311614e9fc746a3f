//! The system calls of the agent, one function each. The `unsafe` of the agent is here.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockaddrLike, SockaddrStorage,
};
use redirect_common::Family;

use crate::protocol::{Datagram, Fd, OptionBytes, Transport, UNTOUCHED, decode_sockaddr};

pub(super) fn number(socket: &OwnedFd) -> Fd {
    socket.as_raw_fd()
}

pub(super) fn socket(family: Family, transport: Transport, nonblocking: bool) -> Result<OwnedFd, Errno> {
    let family = if family == Family::V6 { libc::AF_INET6 } else { libc::AF_INET };
    let (kind, protocol) = match transport {
        Transport::Tcp => (libc::SOCK_STREAM, 0),
        Transport::Mptcp => (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        Transport::Udp => (libc::SOCK_DGRAM, 0),
    };
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: three numbers; the kernel refuses those that it does not know.
    let fd = Errno::result(unsafe { libc::socket(family, kind | flags, protocol) })?;
    // SAFETY: socket() has just made this descriptor and no other place knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn bind(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

pub(super) fn connect(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

/// `connect()` with AF_UNSPEC.
pub(super) fn dissolve(socket: &OwnedFd) -> Result<(), Errno> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the kernel reads one sockaddr, which outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    Errno::result(result).map(drop)
}

pub(super) fn listen(socket: &OwnedFd) -> Result<(), Errno> {
    socket::listen(socket, Backlog::MAXCONN)
}

/// How long `accept()` may take.
const PATIENCE_MS: u16 = 5000;

pub(super) fn accept(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    wait(socket, PollFlags::POLLIN, PATIENCE_MS)?;
    let fd = socket::accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor and no other code knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn sockname(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let storage: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    address(&storage).ok_or(Errno::EAFNOSUPPORT)
}

pub(super) fn peername(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let storage: SockaddrStorage = socket::getpeername(socket.as_raw_fd())?;
    address(&storage).ok_or(Errno::EAFNOSUPPORT)
}

pub(super) fn get_option(
    socket: &OwnedFd,
    level: i32,
    name: i32,
    mut buffer: Vec<u8>,
) -> Result<OptionBytes, Errno> {
    let mut len = buffer.len() as u32;
    // SAFETY: the buffer has `len` bytes; the kernel writes no more than that and both outlive the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(result)?;
    Ok(OptionBytes { len, buffer })
}

/// SO_ORIGINAL_DST as Envoy asks for it.
pub(super) fn original_dst(socket: &OwnedFd, family: Family) -> Result<SocketAddr, Errno> {
    let (level, name) = if family == Family::V6 {
        (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST)
    } else {
        (libc::SOL_IP, libc::SO_ORIGINAL_DST)
    };
    let answer = get_option(socket, level, name, vec![UNTOUCHED; size_of::<libc::sockaddr_storage>()])?;
    decode_sockaddr(&answer.buffer).ok_or(Errno::EAFNOSUPPORT)
}

pub(super) fn set_option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let len = value.len() as u32;
    // SAFETY: the kernel reads `len` bytes of `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(result).map(drop)
}

pub(super) fn send(
    socket: &OwnedFd,
    data: &[u8],
    to: Option<SocketAddr>,
    from: Option<IpAddr>,
) -> Result<usize, Errno> {
    let to = to.map(SockaddrStorage::from);
    let data = [IoSlice::new(data)];
    // Without MSG_NOSIGNAL a reset connection would end the agent instead of answering EPIPE.
    let flags = MsgFlags::MSG_NOSIGNAL;
    let with = |control: &[ControlMessage<'_>]| {
        socket::sendmsg(socket.as_raw_fd(), &data, control, flags, to.as_ref())
    };
    match from {
        None => with(&[]),
        Some(IpAddr::V4(ip)) => with(&[ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })]),
        Some(IpAddr::V6(ip)) => with(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
            ipi6_ifindex: 0,
        })]),
    }
}

pub(super) fn receive(socket: &OwnedFd, size: usize, patience_ms: u16) -> Result<Datagram, Errno> {
    wait(socket, PollFlags::POLLIN, patience_ms)?;
    let mut data = vec![0; size];
    let mut parts = [IoSliceMut::new(&mut data)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let flags = MsgFlags::empty();
    let message =
        socket::recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let at = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let (len, from) = (message.bytes, message.address.as_ref().and_then(address));
    data.truncate(len);
    Ok(Datagram { data, from, at })
}

pub(super) fn await_connect(socket: &OwnedFd) -> Result<(), Errno> {
    wait(socket, PollFlags::POLLOUT, PATIENCE_MS)?;
    match socket::getsockopt(socket, socket::sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// `linux/capability.h`, as bits.
pub(super) const NET_ADMIN: u32 = 1 << 12;
pub(super) const NET_RAW: u32 = 1 << 13;

/// Gives up all capabilities but these, of which none has a number above 31.
pub(super) fn keep_capabilities(kept: u32) -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    // Effective, permitted and inheritable, of the lower 32 and the upper 32.
    let sets: [u32; 6] = [kept, kept, 0, 0, 0, 0];
    // SAFETY: the kernel reads a header of two words and two triples of words, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Makes a socket transparent, as Envoy does.
pub(super) fn make_transparent(socket: &OwnedFd, family: Family) -> Result<(), Errno> {
    let (level, name) = if family == Family::V6 {
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
    } else {
        (libc::SOL_IP, libc::IP_TRANSPARENT)
    };
    set_option(socket, level, name, &1_i32.to_ne_bytes())
}

/// Closes a connection with a reset, so that no TIME_WAIT stays behind.
pub(super) fn reset(socket: OwnedFd) -> Result<(), Errno> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(&socket, socket::sockopt::Linger, &at_once)
}

fn wait(socket: &OwnedFd, flags: PollFlags, patience_ms: u16) -> Result<(), Errno> {
    let mut fds = [PollFd::new(socket.as_fd(), flags)];
    match poll(&mut fds, PollTimeout::from(patience_ms))? {
        0 => Err(Errno::EAGAIN),
        _ => Ok(()),
    }
}

/// A socket address as std has it; `None` for other families.
fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
        .filter(|_| storage.family().is_some())
}
