//! What sockets tell of themselves, also those of other processes.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use super::{Result, SyscallError, owned};

/// The cookie of a socket's network namespace; never reused within a boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// getsockopt(2).
pub fn netns_cookie(socket: impl AsFd) -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    option(&socket, SO_NETNS_COOKIE, "getsockopt(SO_NETNS_COOKIE)")
}

/// The cookie of the socket itself, the same for every descriptor of it.
///
/// # Errors
/// getsockopt(2): ENOTSOCK for another kind of file.
pub fn socket_cookie(socket: impl AsFd) -> Result<u64> {
    option(&socket, libc::SO_COOKIE, "getsockopt(SO_COOKIE)")
}

/// The socket's family: `AF_INET`, `AF_INET6`.
///
/// # Errors
/// getsockopt(2).
pub fn socket_domain(socket: impl AsFd) -> Result<i32> {
    option(&socket, libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")
}

/// Whether it is a TCP socket that listens.
///
/// # Errors
/// getsockopt(2).
pub fn is_listening(socket: impl AsFd) -> Result<bool> {
    let protocol: i32 = option(&socket, libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")?;
    let listens: i32 = option(&socket, libc::SO_ACCEPTCONN, "getsockopt(SO_ACCEPTCONN)")?;
    Ok(protocol == libc::IPPROTO_TCP && listens == 1)
}

/// Whether a socket is a UDP one.
///
/// # Errors
/// getsockopt(2).
pub fn is_udp(socket: impl AsFd) -> Result<bool> {
    let protocol: i32 = option(&socket, libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")?;
    Ok(protocol == libc::IPPROTO_UDP)
}

/// `T` is an integer.
fn option<T: aya::Pod + Default>(socket: &impl AsFd, name: i32, call: &'static str) -> Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length point to locals of the right sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(SyscallError { call, source: io::Error::last_os_error() }) }
}

/// A process by its pid, for [`descriptor_of`].
///
/// # Errors
/// pidfd_open(2): ESRCH when it has ended.
pub fn open_process(pid: i32) -> Result<OwnedFd> {
    // SAFETY: two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    new_descriptor(fd, "pidfd_open")
}

/// A duplicate of another process's descriptor (Linux 5.6).
///
/// # Errors
/// pidfd_getfd(2): EBADF when it was closed meanwhile, EPERM where the process may not be traced.
pub fn descriptor_of(process: impl AsFd, number: i32) -> Result<OwnedFd> {
    // SAFETY: three integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), number, 0) };
    new_descriptor(fd, "pidfd_getfd")
}

fn new_descriptor(fd: i64, call: &'static str) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(SyscallError { call, source: io::Error::last_os_error() });
    }
    Ok(owned(fd as i32))
}
