//! A port of this machine that leads into the node: connections to it are carried on in a network namespace
//! that the machine has no route to. Nothing of the machine's own network is changed.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

/// How long the door tries to reach what is behind it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A port on 127.0.0.1 of this machine, `port` or, for 0, a free one. To be bound outside the demonstration's
/// namespaces: a socket belongs to the network namespace that it was made in, whoever uses it afterwards.
pub(crate) fn bind(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).with_context(|| format!("listening at {address}: try another --port"))
}

/// The door. It is open until the process ends.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
}

impl Door {
    /// Carries connections to `listener` on to `inside` in the namespace `netns`.
    pub(crate) fn open(listener: TcpListener, netns: File, inside: SocketAddr) -> Result<Door> {
        let address = listener.local_addr().context("asking for the address of the door")?;
        let netns = Arc::new(netns);
        thread::spawn(move || {
            // Who has just been here may be gone already: that is no reason to close the door.
            for outside in listener.incoming().flatten() {
                let netns = Arc::clone(&netns);
                thread::spawn(move || {
                    if let Err(error) = carry(outside, &netns, inside) {
                        eprintln!("bookinfo: a connection to {inside} in the node ended: {error}");
                    }
                });
            }
        });
        Ok(Door { address })
    }

    /// What to type into a browser.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Carries one connection on. The calling thread ends in the node's namespace.
fn carry(outside: TcpStream, netns: &File, inside: SocketAddr) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    join(outside, TcpStream::connect_timeout(&inside, PATIENCE)?)
}

/// Copies both ways until both ends have closed.
fn join(outside: TcpStream, inside: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (outside.try_clone()?, inside.try_clone()?);
    let up = thread::spawn(move || copy(&mut from, &mut to));
    let down = copy(&mut { inside }, &mut { outside });
    up.join().unwrap_or(Ok(())).and(down)
}

/// Copies until `from` ends and passes the end on. A reset is an end, too.
fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let outcome = io::copy(from, to);
    let _ = to.shutdown(Shutdown::Write);
    match outcome {
        Err(error) if !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn what_is_said_on_one_side_arrives_on_the_other() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let inside = server.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            stream.write_all(request.to_uppercase().as_bytes()).unwrap();
        });
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(door.local_addr().unwrap()).unwrap();
        let (outside, _) = door.accept().unwrap();
        thread::spawn(move || join(outside, TcpStream::connect(inside).unwrap()).unwrap());
        client.write_all(b"is anybody there?").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "IS ANYBODY THERE?");
    }
}
