//! A server inside the pod: the sidecar, or the application, of tests that need no Envoy.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use redirect_common::Family;

use super::sys;
use crate::protocol::{Seen, Service, Transport};

/// The sidecar's inbound listener: what it forwards, it sends from 127.0.0.6 or ::6.
const INBOUND_PORT: u16 = 15006;

/// Connections accepted since the test asked last.
type Log = Arc<Mutex<Vec<Seen>>>;

#[derive(Default)]
pub(super) struct Server {
    seen: Log,
}

impl Server {
    /// Listens on all addresses, then serves each on a thread of its own, which lives as long as the process.
    pub(super) fn serve(
        &mut self,
        listen: &[SocketAddr],
        service: Service,
        (dual_stack, transparent): (bool, bool),
    ) -> Result<(), Errno> {
        for address in listen {
            let listener = listening(*address, dual_stack, transparent)?;
            let (seen, port) = (Arc::clone(&self.seen), address.port());
            std::thread::spawn(move || accept_forever(&listener, port, service, &seen));
        }
        Ok(())
    }

    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("no panic while logging"))
    }
}

/// A listening socket that several workers can open; an IPv6 one takes IPv6 only, unless `dual_stack`, so
/// that the same port can be opened for both families.
fn listening(address: SocketAddr, dual_stack: bool, transparent: bool) -> Result<OwnedFd, Errno> {
    let socket = sys::socket(Family::of(&address.ip()), Transport::Tcp, false)?;
    if transparent {
        sys::make_transparent(&socket, Family::of(&address.ip()))?;
    }
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &!dual_stack)?;
    }
    sys::bind(&socket, address)?;
    sys::listen(&socket)?;
    Ok(socket)
}

fn accept_forever(listener: &OwnedFd, port: u16, service: Service, log: &Log) {
    let mut told = Told::default();
    loop {
        let socket = match sys::accept(listener) {
            Ok(socket) => socket,
            Err(Errno::EAGAIN) => continue,
            Err(error) => {
                eprintln!("pod-agent: accept on port {port}: {error}");
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        let Ok(seen) = look(&socket, port) else {
            continue; // Reset before it could be looked at.
        };
        log.lock().expect("no panic while logging").push(seen.clone());
        if service == Service::Hangup {
            let _ = sys::reset(socket);
            continue;
        }
        let mut stream = TcpStream::from(socket);
        match service {
            Service::Hangup => {}
            Service::Tell => {
                let line = serde_json::to_string(&seen).expect("plain data") + "\n";
                let _ = stream.write_all(line.as_bytes());
                told.keep(stream);
            }
            Service::Echo => drop(std::thread::spawn(move || copy_until_closed(&stream, &stream))),
            Service::Http => drop(std::thread::spawn(move || answer_requests(&stream))),
            Service::Forward | Service::Imitate => {
                drop(std::thread::spawn(move || forward(&stream, &seen, service)));
            }
        }
    }
}

/// Connections that stay open until their clients are gone.
#[derive(Default)]
struct Told {
    open: Vec<TcpStream>,
    /// So many there may be before the closed ones are looked for.
    patience: usize,
}

impl Told {
    fn keep(&mut self, stream: TcpStream) {
        let _ = stream.set_nonblocking(true);
        self.open.push(stream);
        if self.open.len() > self.patience {
            self.open.retain(is_open);
            self.patience = 64.max(2 * self.open.len());
        }
    }
}

fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

fn look(socket: &OwnedFd, listener: u16) -> Result<Seen, Errno> {
    let local = sys::sockname(socket)?;
    // A connection of an IPv4 client to an IPv6 socket counts as IPv4 for Envoy, too.
    let family = Family::of(&local.ip().to_canonical());
    let original_dst = sys::original_dst(socket, family).map_err(|errno| errno as i32);
    Ok(Seen { listener, local, client: sys::peername(socket)?, original_dst })
}

/// Connects to where the client wanted to go and passes bytes both ways until both sides are done.
fn forward(client: &TcpStream, seen: &Seen, service: Service) {
    let upstream = if service == Service::Imitate { dial_as_client(seen) } else { dial(seen) };
    let Ok(upstream) = upstream else {
        let _ = client.shutdown(Shutdown::Both);
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy_until_closed(client, &upstream));
        copy_until_closed(&upstream, client);
    });
}

fn dial(seen: &Seen) -> Result<TcpStream, Errno> {
    let to = seen.original_dst.map_err(Errno::from_raw)?;
    let socket = sys::socket(Family::of(&to.ip()), Transport::Tcp, false)?;
    if seen.listener == INBOUND_PORT {
        let source: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
            SocketAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
        };
        sys::bind(&socket, SocketAddr::new(source, 0))?;
    }
    sys::connect(&socket, to)?;
    Ok(TcpStream::from(socket))
}

/// Answers requests without a body, one after the other, until the client is done.
fn answer_requests(stream: &TcpStream) {
    let mut head = Vec::new();
    for byte in std::io::BufReader::new(stream).bytes().map_while(Result::ok) {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        let Ok(client) = stream.peer_addr() else { return };
        let (client, mut to) = (client.to_string(), stream);
        let length = client.len();
        if write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{client}").is_err() {
            return;
        }
    }
}

/// Inbound, with the client's address and a port of the kernel's choice: Envoy's listener filter
/// `original_src`.
fn dial_as_client(seen: &Seen) -> Result<TcpStream, Errno> {
    if seen.listener != INBOUND_PORT {
        return dial(seen);
    }
    let to = seen.original_dst.map_err(Errno::from_raw)?;
    let socket = sys::socket(Family::of(&to.ip()), Transport::Tcp, false)?;
    sys::make_transparent(&socket, Family::of(&to.ip()))?;
    // The mark by which Istio's rules know the sidecar's way to the application.
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, &1337_i32.to_ne_bytes())?;
    sys::bind(&socket, SocketAddr::new(seen.client.ip().to_canonical(), 0))?;
    sys::connect(&socket, to)?;
    Ok(TcpStream::from(socket))
}

fn copy_until_closed(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = from.set_read_timeout(Some(Duration::from_secs(60)));
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
