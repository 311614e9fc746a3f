//! The agent: the process that lives in a pod's network namespace and cgroup and makes system calls for a
//! test.
//!
//! It must be a process because a socket belongs to the cgroup of the *process* that made it: a thread that
//! only entered the namespace would make sockets that the pod's programs never see. It ends when its stdin
//! does.

mod dialer;
mod server;
mod sys;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::Serialize;
use serde_json::Value;

use crate::protocol::{Fd, Opened, Request, Transport};
use dialer::Dialer;
use redirect_common::Family;
use server::Server;

/// Runs the agent: `pod-agent UID GID CAPABILITIES`, requests on stdin, answers on stdout.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ids: Vec<u32> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let ([uid, gid], [_, _, capabilities]) = (&ids[..], &args[..]) else {
        eprintln!(
            "usage: pod-agent UID GID of-user|none|network (a test starts it; it is of no use by hand)"
        );
        return ExitCode::from(2);
    };
    if let Err(error) = become_user(Uid::from_raw(*uid), Gid::from_raw(*gid), capabilities) {
        eprintln!("pod-agent: become uid {uid}, gid {gid}: {error}");
        return ExitCode::FAILURE;
    }
    let mut agent = Agent::default();
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let request = serde_json::from_str(&line).expect("a request in the shape of protocol.rs");
        let answer = agent.answer(request).map_err(|errno| errno as i32);
        let text = serde_json::to_string(&answer).expect("an answer is plain data");
        if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// Takes all the descriptors that the limit allows, then gives up being root, and every way back.
fn become_user(uid: Uid, gid: Gid, capabilities: &str) -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // What the change of the user would take; it goes in the next but one step.
    nix::sys::prctl::set_keepcaps(capabilities == "network")?;
    setresuid(uid, uid, uid)?;
    match capabilities {
        "network" => sys::keep_capabilities(sys::NET_ADMIN | sys::NET_RAW)?,
        "none" => sys::keep_capabilities(0)?,
        _ => {}
    }
    set_no_new_privs()
}

fn become_both(real: u32, effective: u32) -> nix::Result<()> {
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(Gid::from_raw(real), Gid::from_raw(effective), root.1)?;
    setresuid(Uid::from_raw(real), Uid::from_raw(effective), root.0)
}

/// What the agent holds for its test.
#[derive(Default)]
struct Agent {
    sockets: HashMap<Fd, OwnedFd>,
    many: Vec<OwnedFd>,
    server: Server,
    dialer: Dialer,
}

impl Agent {
    /// Carries out one request.
    fn answer(&mut self, request: Request) -> Result<Value, Errno> {
        match request {
            Request::Socket { v6, transport, nonblocking } => {
                let family = if v6 { Family::V6 } else { Family::V4 };
                self.hold(sys::socket(family, transport, nonblocking)?)
            }
            Request::Accept { fd } => self.hold(sys::accept(self.socket(fd)?)?),
            Request::Bind { fd, address } => json(sys::bind(self.socket(fd)?, address)?),
            Request::Connect { fd, address } => json(sys::connect(self.socket(fd)?, address)?),
            Request::Listen { fd } => json(sys::listen(self.socket(fd)?)?),
            Request::SockName { fd } => json(sys::sockname(self.socket(fd)?)?),
            Request::PeerName { fd } => json(sys::peername(self.socket(fd)?)?),
            Request::GetOption { fd, level, name, buffer } => {
                json(sys::get_option(self.socket(fd)?, level, name, buffer)?)
            }
            Request::SetOption { fd, level, name, value } => {
                json(sys::set_option(self.socket(fd)?, level, name, &value)?)
            }
            Request::Send { fd, data, to, from } => json(sys::send(self.socket(fd)?, &data, to, from)?),
            Request::Dissolve { fd } => json(sys::dissolve(self.socket(fd)?)?),
            Request::Receive { fd, size, patience_ms } => {
                json(sys::receive(self.socket(fd)?, size, patience_ms)?)
            }
            Request::AwaitConnect { fd } => json(sys::await_connect(self.socket(fd)?)?),
            Request::Become { real, effective } => json(become_both(real, effective)?),
            Request::Close { fd } => json(self.sockets.remove(&fd).map(drop).ok_or(Errno::EBADF)?),
            Request::OpenMany { to, count } => json(self.open_many(&to, count)),
            Request::CloseMany => json(self.many.drain(..).try_for_each(sys::reset)?),
            Request::Serve { listen, service, dual_stack, transparent } => {
                json(self.server.serve(&listen, service, (dual_stack, transparent))?)
            }
            Request::DialEvery { to, pause_ms } => {
                self.dialer.start(to, Duration::from_millis(pause_ms));
                json(())
            }
            Request::TakeDialled => json(self.dialer.take()),
            Request::TakeSeen => json(self.server.take_seen()),
        }
    }

    fn hold(&mut self, socket: OwnedFd) -> Result<Value, Errno> {
        let fd = sys::number(&socket);
        self.sockets.insert(fd, socket);
        json(fd)
    }

    fn socket(&self, fd: Fd) -> Result<&OwnedFd, Errno> {
        self.sockets.get(&fd).ok_or(Errno::EBADF)
    }

    fn open_many(&mut self, to: &[std::net::SocketAddr], count: usize) -> Opened {
        for done in 0..count {
            let address = to[done % to.len()];
            let socket = sys::socket(Family::of(&address.ip()), Transport::Tcp, false)
                .and_then(|socket| sys::connect(&socket, address).map(|()| socket));
            match socket {
                Ok(socket) => self.many.push(socket),
                Err(errno) => return Opened { count: done, error: Some(errno as i32) },
            }
        }
        Opened { count, error: None }
    }
}

/// An answer as JSON.
fn json(answer: impl Serialize) -> Result<Value, Errno> {
    Ok(serde_json::to_value(answer).expect("an answer is plain data"))
}
