//! A process inside a pod, through which a test makes its system calls.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use crate::binaries::binary;
use crate::netns::NetNs;
use crate::protocol::{Dialled, Opened, Request, Seen, Service};

/// Who a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl User {
    /// An application.
    pub const APP: User = User { uid: 1000, gid: 1000 };
    /// The sidecar.
    pub const PROXY: User = User { uid: 1337, gid: 1337 };
    /// The sidecar as Istio's injector writes it for TPROXY.
    pub const TPROXY: User = User { uid: 0, gid: 1337 };
    /// Root.
    pub const ROOT: User = User { uid: 0, gid: 0 };
}

/// Which capabilities a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// What the kernel leaves to its user: all to root, none to everybody else.
    OfUser,
    /// None at all.
    None,
    /// CAP_NET_ADMIN and CAP_NET_RAW.
    Network,
}

impl Capabilities {
    /// What the agent is told.
    fn word(self) -> &'static str {
        match self {
            Capabilities::OfUser => "of-user",
            Capabilities::None => "none",
            Capabilities::Network => "network",
        }
    }
}

/// A process in a network namespace, a cgroup and with the ids of a user. Clones stand for the same process;
/// it ends when the last clone, and the last [`crate::Socket`] made in it, is gone.
#[derive(Clone, Debug)]
pub struct Process {
    agent: Arc<Mutex<Agent>>,
}

#[derive(Debug)]
struct Agent {
    name: String,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// How long an agent may take for one answer. Long, because 20,000 connections are one request.
const PATIENCE_MS: u16 = 60_000;

impl Process {
    /// Starts a process; `name` is for messages.
    #[must_use]
    pub fn start(name: &str, netns: &NetNs, cgroup: &Path, user: User) -> Process {
        Process::start_with(name, netns, cgroup, user, Capabilities::OfUser)
    }

    /// Starts a process with these capabilities.
    #[must_use]
    pub fn start_with(
        name: &str,
        netns: &NetNs,
        cgroup: &Path,
        user: User,
        capabilities: Capabilities,
    ) -> Process {
        let mut command = Command::new(binary("pod-agent"));
        command.arg(user.uid.to_string()).arg(user.gid.to_string()).arg(capabilities.word());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        netns.enter(&mut command, Some(cgroup));
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let agent = Agent { name: name.to_owned(), child, requests, answers };
        Process { agent: Arc::new(Mutex::new(agent)) }
    }

    /// Changes its ids, user and group alike. It must have been started as [`User::ROOT`].
    pub fn become_both(&self, real: u32, effective: u32) {
        self.call::<()>(Request::Become { real, effective }).expect("change the ids");
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock().child.id()
    }

    /// Serves at `listen` in the background, until the process ends.
    ///
    /// # Errors
    /// What `bind()` or `listen()` says.
    pub fn serve(&self, listen: &[SocketAddr], service: Service) -> Result<(), Errno> {
        self.call(Request::Serve { listen: listen.to_vec(), service, dual_stack: false, transparent: false })
    }

    /// The same; IPv6 sockets take IPv4 as well.
    ///
    /// # Errors
    /// What `bind()` or `listen()` says.
    pub fn serve_dual_stack(&self, listen: &[SocketAddr], service: Service) -> Result<(), Errno> {
        self.call(Request::Serve { listen: listen.to_vec(), service, dual_stack: true, transparent: false })
    }

    /// The same on transparent sockets, as a sidecar in TPROXY mode.
    ///
    /// # Errors
    /// What `setsockopt()`, `bind()` or `listen()` says.
    pub fn serve_transparent(
        &self,
        listen: &[SocketAddr],
        service: Service,
        dual_stack: bool,
    ) -> Result<(), Errno> {
        self.call(Request::Serve { listen: listen.to_vec(), service, dual_stack, transparent: true })
    }

    /// The connections that the process' servers accepted since this was asked last.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        self.call(Request::TakeSeen).expect("reading a list does not fail")
    }

    /// Connects to each of `to` in turn, every `pause`, in the background and until the process ends.
    pub fn dial_every(&self, to: &[SocketAddr], pause: Duration) {
        let pause_ms = pause.as_millis().try_into().unwrap_or(u64::MAX);
        self.call::<()>(Request::DialEvery { to: to.to_vec(), pause_ms }).expect("start a thread");
    }

    /// What became of these attempts since this was asked last.
    #[must_use]
    pub fn take_dialled(&self) -> Dialled {
        self.call(Request::TakeDialled).expect("reading numbers does not fail")
    }

    /// Opens `count` connections, round robin over `to`, and holds them in the process.
    #[must_use]
    pub fn open_many(&self, to: &[SocketAddr], count: usize) -> Opened {
        self.call(Request::OpenMany { to: to.to_vec(), count }).expect("errors are in the answer")
    }

    /// Closes what [`Process::open_many`] opened, with a reset.
    pub fn close_many(&self) {
        self.call::<()>(Request::CloseMany).expect("close connections");
    }

    /// Sends one request and waits for its answer.
    pub(crate) fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T, Errno> {
        let answer: Result<T, i32> = self.lock().call(&request);
        answer.map_err(Errno::from_raw)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Agent> {
        // A test that panicked while it waited for an answer still closes its sockets.
        self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Agent {
    fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, i32> {
        let mut line = serde_json::to_string(request).expect("a request is plain data");
        line.push('\n');
        let sent = self.requests.as_mut().map(|pipe| pipe.write_all(line.as_bytes()));
        assert!(matches!(sent, Some(Ok(()))), "{} has ended: {request:?} was not sent", self.name);
        let mut fds = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(PATIENCE_MS)).unwrap_or(0);
        if ready == 0 {
            // Its answer must not be taken for that of the next request.
            self.requests = None;
            panic!("{} did not answer within {PATIENCE_MS} ms: {request:?}", self.name);
        }
        line.clear();
        self.answers.read_line(&mut line).expect("read an answer");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{}: {request:?}: {line:?}: {error}", self.name))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.requests.take());
        // It ends with its stdin, but not while it waits in a system call.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
