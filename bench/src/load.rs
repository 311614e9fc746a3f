//! The load itself: loops of bare system calls, both ends of every connection driven by one thread.
//!
//! One thread makes the figures steady: loopback and veth deliver a packet within the sender's system call,
//! so nothing is ever waited for, no scheduler takes part, and the thread's CPU clock (which counts the soft
//! interrupts that its calls bring about) is the whole cost of client, server and network stack. Most of the
//! `unsafe` of the benchmark is here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use harness::Family;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, setsockopt, sockopt,
};

/// One byte to the server and one back is a round trip.
const BYTE: [u8; 1] = [1];
/// How much one `send` of the throughput loop hands to the kernel: as much as fits into the socket's buffers
/// at once.
const CHUNK: usize = 64 << 10;

/// Who the thread is for the kernel programs: they know the proxy by the real user of the caller. In every
/// mode the thread changes twice per connection, so what that costs is the same in all of them.
const PROXY: libc::uid_t = 1337;
const APP: libc::uid_t = 0;

/// A connection's two ends.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: OwnedFd,
    pub(crate) server: OwnedFd,
}

/// What one connection went through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// From `connect()` to the end of `accept()`.
    pub(crate) connected: Duration,
    /// From `connect()` to both ends closed.
    pub(crate) whole: Duration,
}

/// A TCP socket that closes with a reset, so that no TIME_WAIT is left behind, and does not wait for more to
/// send.
pub(crate) fn tcp(family: Family) -> io::Result<OwnedFd> {
    let family = if family == Family::V6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    Ok(socket)
}

/// A connection over `socket` to `to`, accepted on `listener`.
pub(crate) fn pair(socket: OwnedFd, to: SocketAddr, listener: &OwnedFd) -> io::Result<Pair> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(Pair { client: socket, server: accept(listener.as_raw_fd())? })
}

/// One whole connection: set up, a byte each way, the question for the original destination, both ends
/// closed.
pub(crate) fn lap(client: OwnedFd, to: &SockaddrStorage, listener: RawFd, family: Family) -> io::Result<Lap> {
    let start = now();
    connect(client.as_raw_fd(), to)?;
    become_user(PROXY)?;
    let server = accept(listener)?;
    let connected = now() - start;
    carry(client.as_raw_fd(), server.as_raw_fd())?;
    // A connection that was dialled to the sidecar itself is not redirected: then the answer is ENOENT.
    let _ = original_dst(&server, family);
    become_user(APP)?;
    carry(server.as_raw_fd(), client.as_raw_fd())?;
    drop(client);
    drop(server);
    Ok(Lap { connected, whole: now() - start })
}

/// Does what only the proxy does: listens, asks for the original destination.
pub(crate) fn as_proxy<T, E: From<io::Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    become_user(PROXY)?;
    let result = work();
    become_user(APP)?;
    result
}

/// Changes the real user of this thread alone. The effective user, and with it every right, stays.
fn become_user(uid: libc::uid_t) -> io::Result<()> {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: plain numbers. The wrapper of libc would change all threads, the system call changes one.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, SAME, SAME) } as isize).map(drop)
}

/// Round trips of one byte each way.
pub(crate) fn round_trips(pair: &Pair, count: usize) -> io::Result<()> {
    let (client, server) = (pair.client.as_raw_fd(), pair.server.as_raw_fd());
    for _ in 0..count {
        carry(client, server)?;
        carry(server, client)?;
    }
    Ok(())
}

/// Sends `chunks` times 64 KiB from the client to the server, which reads them as they come.
pub(crate) fn bulk(pair: &Pair, chunks: usize) -> io::Result<usize> {
    let data = vec![7_u8; CHUNK];
    let mut room = vec![0_u8; CHUNK];
    for _ in 0..chunks {
        let mut sent = 0;
        while sent < CHUNK {
            let now = send(pair.client.as_raw_fd(), &data[sent..])?;
            sent += now;
            let mut received = 0;
            while received < now {
                received += recv(pair.server.as_raw_fd(), &mut room)?;
            }
        }
    }
    Ok(chunks * CHUNK)
}

/// Asks `count` times for an option that the kernel answers without work (`SO_ERROR`).
pub(crate) fn get_options(socket: &OwnedFd, count: usize) -> io::Result<()> {
    for _ in 0..count {
        get_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, &mut [0; 4])?;
    }
    Ok(())
}

/// Connects a UDP socket `count` times; no packet is sent, so this is the call alone.
pub(crate) fn connect_udp(to: SocketAddr, count: usize) -> io::Result<()> {
    let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let to = SockaddrStorage::from(to);
    (0..count).try_for_each(|_| connect(socket.as_raw_fd(), &to))
}

/// What `SO_ORIGINAL_DST` says, asked as Envoy asks.
pub(crate) fn original_dst(socket: &OwnedFd, family: Family) -> io::Result<SocketAddr> {
    let (level, name) = if family == Family::V6 {
        (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST)
    } else {
        (libc::SOL_IP, libc::SO_ORIGINAL_DST)
    };
    let mut answer = [0_u8; size_of::<libc::sockaddr_storage>()];
    get_option(socket.as_raw_fd(), level, name, &mut answer)?;
    let port = u16::from_be_bytes([answer[2], answer[3]]);
    let octets = |from: usize, to: usize| answer[from..to].to_vec();
    let ip = if family == Family::V6 {
        <[u8; 16]>::try_from(octets(8, 24)).map(std::net::IpAddr::from)
    } else {
        <[u8; 4]>::try_from(octets(4, 8)).map(std::net::IpAddr::from)
    };
    ip.map(|ip| SocketAddr::new(ip, port)).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The thread's CPU time, soft interrupts that ran on top of it included.
pub(crate) fn cpu() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// The time since some fixed point.
pub(crate) fn now() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// Has the scheduler prefer this process; without the right to do so, nothing happens.
pub(crate) fn go_first() {
    // SAFETY: plain numbers; 0 stands for the caller.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
}

/// User and system time, and the exit status, of a child that has ended or is about to.
pub(crate) fn wait_for(pid: u32) -> io::Result<(i32, Duration)> {
    let mut status = 0;
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: status and usage are locals of the right types.
    let result = unsafe { libc::wait4(pid.cast_signed(), &raw mut status, 0, &raw mut usage) };
    check(result as isize)?;
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.cast_unsigned()) + Duration::from_micros(t.tv_usec.cast_unsigned())
    };
    Ok((status, time(usage.ru_utime) + time(usage.ru_stime)))
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is a local of the right type; the clocks asked for exist on every Linux.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Sends one byte and receives it at the other end.
fn carry(from: RawFd, to: RawFd) -> io::Result<()> {
    send(from, &BYTE)?;
    recv(to, &mut [0; 1]).map(drop)
}

fn connect(socket: RawFd, to: &SockaddrStorage) -> io::Result<()> {
    // SAFETY: the address is valid for the length that it says.
    check(unsafe { libc::connect(socket, to.as_ptr(), to.len()) } as isize).map(drop)
}

fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the peer's address is not asked for.
    let fd =
        unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    check(fd as isize)?;
    // SAFETY: accept4 has just made this descriptor and no other code knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads no more than the slice has.
    check(unsafe { libc::send(socket, data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) })
}

fn recv(socket: RawFd, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes no more than the slice has.
    match check(unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), 0) })? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(length),
    }
}

fn get_option(socket: RawFd, level: i32, name: i32, room: &mut [u8]) -> io::Result<()> {
    let mut length = room.len() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes of the slice.
    let result = unsafe { libc::getsockopt(socket, level, name, room.as_mut_ptr().cast(), &raw mut length) };
    check(result as isize).map(drop)
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
