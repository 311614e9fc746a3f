//! What the applications in the pods are: a server that says who connected to it, and a client that says what
//! it believes it is connected to.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where this program is in containers.
pub const PATH: &str = "/tool";
/// The port of the server.
pub const PORT: u16 = 8080;

const PATIENCE: Duration = Duration::from_secs(5);

/// Does what the arguments say: `serve`, or `get ADDRESS PATH`.
///
/// # Errors
/// If they say something else, or the network refuses.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let words: Vec<_> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["serve"] => serve(),
        ["get", address, path] => get(address.parse()?, path),
        _ => bail!("unknown command {words:?}"),
    }
}

/// Answers every request with its peer's address; ends with an error only.
///
/// # Errors
/// If the port is taken.
pub fn serve() -> Result<ExitCode> {
    // One socket for both families.
    let listener = TcpListener::bind(("::", PORT))?;
    loop {
        let (mut stream, peer) = listener.accept()?;
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.read(&mut [0; 1024]);
        let ip = peer.ip().to_canonical();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nserved {ip}\n");
    }
}

/// Prints the connection's two ends on a line, then the answer. Fails on anything but 200.
fn get(address: SocketAddr, path: &str) -> Result<ExitCode> {
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    println!("{} {}", stream.local_addr()?, stream.peer_addr()?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    // At once: the server answers, and closes, after its first read.
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(if answer.contains(" 200 ") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
