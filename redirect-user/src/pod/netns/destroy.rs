//! Ends TCP connections of a network namespace from outside, as `ss -K` does: both ends get a reset.
//!
//! One message of sock_diag(7) for each (`SOCK_DESTROY`, Linux 4.5, where the kernel has
//! `CONFIG_INET_DIAG_DESTROY`). It needs CAP_NET_ADMIN over the namespace.

use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_SOCK_DIAG};

use super::tcp::TcpSocket;

/// `SOCK_DESTROY` of `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// Bytes of `struct nlmsghdr` and of `struct inet_diag_req_v2` (`linux/inet_diag.h`).
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// `INET_DIAG_NOCOOKIE`: the addresses are enough.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Ends these in the calling thread's namespace; how many there still were.
///
/// # Errors
/// EOPNOTSUPP from a kernel that cannot do it, EPERM without the capability.
pub(super) fn destroy(sockets: &[TcpSocket]) -> io::Result<usize> {
    let channel = Socket::new(NETLINK_SOCK_DIAG)?;
    let mut ended = 0;
    for socket in sockets {
        channel.send_to(&message(socket), &Kernel::new(0, 0), 0)?;
        let mut answer = Vec::with_capacity(1024);
        channel.recv_from(&mut answer, 0)?;
        match outcome(&answer)? {
            0 => ended += 1,
            // It has ended by itself meanwhile.
            libc::ENOENT => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(ended)
}

/// `struct nlmsghdr` in the machine's byte order, then the request with addresses and ports in the network's.
fn message(socket: &TcpSocket) -> Vec<u8> {
    let family = if socket.own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK).cast_unsigned() as u16;
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    message.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    // Family, protocol, extensions, padding; all states.
    message.extend([family.cast_unsigned() as u8, libc::IPPROTO_TCP.cast_unsigned() as u8, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(socket.own.port().to_be_bytes());
    message.extend(socket.peer.port().to_be_bytes());
    message.extend(address(socket.own.ip()));
    message.extend(address(socket.peer.ip()));
    // Any interface.
    message.extend([0; 4]);
    message.extend(ANY_COOKIE);
    message
}

/// Sixteen bytes; an IPv4 address has the first four.
fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The errno of `struct nlmsgerr`, 0 for an acknowledgement.
fn outcome(answer: &[u8]) -> io::Result<i32> {
    let error = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    let error = error.map(i32::from_ne_bytes);
    error.map(i32::wrapping_neg).ok_or_else(|| io::Error::other("sock_diag answered with no error code"))
}
