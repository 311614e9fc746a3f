//! A client that never stops: it connects again and again, in the background, and counts what becomes of it.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use redirect_common::Family;

use super::sys;
use crate::protocol::{Dialled, Transport};

/// How long an attempt may take, in milliseconds.
const PATIENCE_MS: u8 = 100;

#[derive(Default)]
pub(super) struct Dialer {
    dialled: Arc<Mutex<Dialled>>,
}

impl Dialer {
    /// Connects to each address in turn, for as long as the process lives.
    pub(super) fn start(&self, to: Vec<SocketAddr>, pause: Duration) {
        let dialled = Arc::clone(&self.dialled);
        std::thread::spawn(move || {
            for address in to.iter().cycle() {
                let outcome = dial(*address);
                let mut dialled = dialled.lock().expect("no panic while counting");
                match outcome {
                    // Whoever hangs up has accepted.
                    Ok(()) | Err(Errno::ECONNRESET) => dialled.accepted += 1,
                    Err(errno) => {
                        dialled.failed += 1;
                        dialled.error = Some(errno as i32);
                    }
                }
                drop(dialled);
                std::thread::sleep(pause);
            }
        });
    }

    pub(super) fn take(&self) -> Dialled {
        std::mem::take(&mut *self.dialled.lock().expect("no panic while counting"))
    }
}

/// One connection, closed with a reset.
fn dial(to: SocketAddr) -> Result<(), Errno> {
    let socket = sys::socket(Family::of(&to.ip()), Transport::Tcp, true)?;
    match sys::connect(&socket, to) {
        Err(Errno::EINPROGRESS) => wait(&socket)?,
        other => other?,
    }
    sys::reset(socket)
}

fn wait(socket: &OwnedFd) -> Result<(), Errno> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::from(PATIENCE_MS))? {
        0 => Err(Errno::EAGAIN),
        _ => sys::await_connect(socket),
    }
}
