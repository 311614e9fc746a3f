//! The system calls of the agent, one function each. The `unsafe` of the agent is here.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage,
};

use crate::protocol::{Datagram, Fd, OptionBytes, UNTOUCHED, decode_sockaddr};

pub(super) fn number(socket: &OwnedFd) -> Fd {
    socket.as_raw_fd()
}

pub(super) fn socket(v6: bool, udp: bool, nonblocking: bool) -> Result<OwnedFd, Errno> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let kind = if udp { SockType::Datagram } else { SockType::Stream };
    let flags = if nonblocking { SockFlag::SOCK_NONBLOCK } else { SockFlag::empty() };
    socket::socket(family, kind, flags | SockFlag::SOCK_CLOEXEC, None)
}

pub(super) fn bind(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

pub(super) fn connect(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))
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
pub(super) fn original_dst(socket: &OwnedFd, v6: bool) -> Result<SocketAddr, Errno> {
    let (level, name) =
        if v6 { (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST) } else { (libc::SOL_IP, libc::SO_ORIGINAL_DST) };
    let answer = get_option(socket, level, name, vec![UNTOUCHED; size_of::<libc::sockaddr_storage>()])?;
    decode_sockaddr(&answer.buffer).ok_or(Errno::EAFNOSUPPORT)
}

pub(super) fn set_option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let len = value.len() as u32;
    // SAFETY: the kernel reads `len` bytes of `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(result).map(drop)
}

pub(super) fn send(socket: &OwnedFd, data: &[u8], to: Option<SocketAddr>) -> Result<usize, Errno> {
    // Without MSG_NOSIGNAL a reset connection would end the agent instead of answering EPIPE.
    match to {
        Some(to) => {
            socket::sendto(socket.as_raw_fd(), data, &SockaddrStorage::from(to), MsgFlags::MSG_NOSIGNAL)
        }
        None => socket::send(socket.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL),
    }
}

pub(super) fn receive(socket: &OwnedFd, size: usize, patience_ms: u16) -> Result<Datagram, Errno> {
    wait(socket, PollFlags::POLLIN, patience_ms)?;
    let mut data = vec![0; size];
    let (len, from) = socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut data)?;
    data.truncate(len);
    Ok(Datagram { data, from: from.as_ref().and_then(address) })
}

pub(super) fn await_connect(socket: &OwnedFd) -> Result<(), Errno> {
    wait(socket, PollFlags::POLLOUT, PATIENCE_MS)?;
    match socket::getsockopt(socket, socket::sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
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
