//! The application in the demo's pods: a small HTTP server and client that knows nothing of sidecars,
//! namespaces or this project. It serves on one port of every address, and takes requests to make, one URL
//! authority a line, on standard input; what it saw goes to standard output as JSON.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// How long the application waits for a connection or an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the client side of a request saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// The request was answered.
    Answered(Answered),
    /// `connect()` or a later call failed.
    Failed {
        /// The operating system's error number, for example 111 for "connection refused".
        errno: Option<i32>,
        /// The error in words.
        message: String,
    },
}

/// A request that was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answered {
    /// `getpeername()` of the client's socket.
    pub(crate) peer: SocketAddr,
    /// `getsockname()` of the client's socket.
    pub(crate) local: SocketAddr,
    /// What the server saw.
    pub(crate) server: Served,
}

/// What the server side of a request saw; the body of every response.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Served {
    /// The name of the pod that answered.
    pub(crate) pod: String,
    /// The server's `getpeername()`.
    pub(crate) peer: SocketAddr,
    /// The server's `getsockname()`.
    pub(crate) local: SocketAddr,
}

/// Runs the application until standard input ends.
pub(crate) fn run(pod: &str, port: u16) -> Result<()> {
    // The standard library leaves IPV6_V6ONLY at the system's default, which is off: one socket serves both
    // families.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("listening on {port}"))?;
    let name = pod.to_owned();
    thread::spawn(move || serve(&listener, &name));
    println!("listening");
    for line in io::stdin().lock().lines() {
        let outcome = match line?.parse() {
            Ok(dst) => get(dst),
            Err(err) => Outcome::Failed { errno: None, message: format!("not an address: {err}") },
        };
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

/// Makes one request: `GET /` of the server at `dst`.
pub(crate) fn get(dst: SocketAddr) -> Outcome {
    match try_get(dst) {
        Ok(answered) => Outcome::Answered(answered),
        Err(err) => Outcome::Failed { errno: err.raw_os_error(), message: err.to_string() },
    }
}

fn try_get(dst: SocketAddr) -> io::Result<Answered> {
    let mut stream = TcpStream::connect_timeout(&dst, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    write!(stream, "GET / HTTP/1.1\r\nHost: {dst}\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let Some((head, body)) = response.split_once("\r\n\r\n") else {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    };
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("the answer was: {}", head.lines().next().unwrap_or_default())));
    }
    Ok(Answered { peer, local, server: serde_json::from_str(body)? })
}

fn serve(listener: &TcpListener, pod: &str) {
    for stream in listener.incoming().flatten() {
        let pod = pod.to_owned();
        // A client that goes away in the middle is its own problem, not the server's.
        thread::spawn(move || drop(answer(&stream, pod)));
    }
}

fn answer(stream: &TcpStream, pod: String) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    while !lines.next().context("the request ended early")??.is_empty() {}
    let served = Served { pod, peer: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) };
    let body = serde_json::to_string(&served)?;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    (&mut &*stream).write_all((head + &body).as_bytes())?;
    Ok(())
}

/// An address as its family writes it: a dual-stack socket shows IPv4 peers as `::ffff:a.b.c.d`.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
