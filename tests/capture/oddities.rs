//! Does in a pod what the harness's agent does not: one unusual way to use a socket per call, result on
//! stdout.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, connect, recvmmsg, sendmmsg,
    socket,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["mptcp"] => mptcp(None),
        ["mptcp", to] => mptcp(Some(to)),
        ["ids", real, effective, to] => with_ids(real, effective, to),
        ["fastopen", to] => fast_open(to),
        ["io-uring", to] => io_uring(to),
        ["pass-socket", to, uid] => pass_socket(to, uid),
        ["sendmmsg", ref servers @ ..] => send_many(servers),
        _ => Err(anyhow::anyhow!("usage: pod-oddities mptcp|ids|fastopen|io-uring|pass-socket|sendmmsg ...")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pod-oddities: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes an MPTCP socket and, with an address, dials; prints `ok` or the errno of `socket()`.
fn mptcp(to: Option<&str>) -> Result<()> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        println!("errno {}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        return Ok(());
    }
    // SAFETY: the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    println!("ok");
    if let Some(to) = to {
        connect(socket.as_raw_fd(), &storage(to)?).context("connect an MPTCP socket")?;
        talk(TcpStream::from(socket))?;
    }
    Ok(())
}

/// Connects with another real and effective user.
fn with_ids(real: &str, effective: &str, to: &str) -> Result<()> {
    let [real, effective] = [real, effective].map(|id| id.parse().map(nix::unistd::Uid::from_raw));
    nix::unistd::setresuid(real?, effective?, nix::unistd::Uid::from_raw(0)).context("setresuid()")?;
    talk(TcpStream::connect(to).context("connect with other ids")?)
}

/// `sendto(MSG_FASTOPEN)`: connects and sends in one call. Twice, so that the second has the cookie of the
/// first.
fn fast_open(to: &str) -> Result<()> {
    let address: SocketAddr = to.parse()?;
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    nix::sys::socket::sendto(socket.as_raw_fd(), b"hello", &storage(to)?, flags)
        .context("sendto(MSG_FASTOPEN)")?;
    talk(TcpStream::from(socket))
}

/// Reads the line that the harness's server tells.
fn talk(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"hello")?;
    let mut line = [0; 4096];
    let length = stream.read(&mut line).context("read what the server tells")?;
    print!("{}", String::from_utf8_lossy(&line[..length]));
    Ok(())
}

/// `IORING_OP_CONNECT`; prints `not available` where the kernel or its configuration has no io_uring.
fn io_uring(to: &str) -> Result<()> {
    let Ok(mut ring) = io_uring::IoUring::new(2) else {
        println!("not available");
        return Ok(());
    };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let address = storage(to)?;
    let entry = io_uring::opcode::Connect::new(
        io_uring::types::Fd(socket.as_raw_fd()),
        std::ptr::from_ref(&address).cast(),
        size_of::<libc::sockaddr_in>() as u32,
    )
    .build();
    // SAFETY: `address` and the socket live until the completion has been read below.
    unsafe { ring.submission().push(&entry) }.context("queue the connect")?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().context("a completion")?.result();
    if result < 0 {
        bail!("connect through io_uring: {}", std::io::Error::from_raw_os_error(-result));
    }
    talk(TcpStream::from(socket))
}

/// Makes a socket, then becomes another user, who connects it: what a process does that gets it passed.
fn pass_socket(to: &str, uid: &str) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let uid = nix::unistd::Uid::from_raw(uid.parse()?);
    if uid != nix::unistd::Uid::effective() {
        bail_unless_root()?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    connect(socket.as_raw_fd(), &storage(to)?).context("connect")?;
    talk(TcpStream::from(socket))
}

fn bail_unless_root() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("only root can become another user");
    }
    Ok(())
}

/// Two questions to every server in one `sendmmsg()`; prints who the answers of one `recvmmsg()` came from.
fn send_many(servers: &[&str]) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let addresses: Vec<Option<SockaddrStorage>> = servers
        .iter()
        .flat_map(|server| [*server, *server])
        .map(|to| storage(to).map(Some))
        .collect::<Result<_>>()?;
    let question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
    let slices = vec![[std::io::IoSlice::new(question)]; addresses.len()];
    let mut headers = MultiHeaders::preallocate(addresses.len(), None);
    sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty())
        .context("sendmmsg")?;
    let mut buffers = vec![[0_u8; 512]; addresses.len()];
    let mut answers: Vec<_> = buffers.iter_mut().map(|buffer| [std::io::IoSliceMut::new(buffer)]).collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(addresses.len(), None);
    let received = recvmmsg(socket.as_raw_fd(), &mut headers, answers.iter_mut(), MsgFlags::empty(), None)
        .context("recvmmsg")?;
    for message in received {
        let from = message.address.context("a source")?;
        println!("{from}");
    }
    Ok(())
}

fn storage(address: &str) -> Result<SockaddrStorage> {
    let address: SocketAddr = address.parse().with_context(|| format!("{address} is not an address"))?;
    Ok(SockaddrStorage::from(address))
}
