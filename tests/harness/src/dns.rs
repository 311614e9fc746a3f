//! DNS in a pod, with `pod-dns` at both ends: the sidecar's DNS proxy, and applications that ask.

pub mod message;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::binaries::binary;
use crate::pod::Pod;
use crate::process::User;
use crate::unprivileged::unprivileged;

/// Where Istio's agent binds its DNS proxy.
pub const DNS_PROXY: [&str; 2] = ["127.0.0.1:15053", "[::1]:15053"];

/// A DNS proxy: a process in a pod, until dropped.
#[derive(Debug)]
pub struct DnsProxy {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl DnsProxy {
    /// As Istio's agent: the sidecar's ids, on localhost, answers from where it was asked.
    #[must_use]
    pub fn start(pod: &Pod) -> DnsProxy {
        DnsProxy::with(pod, User::PROXY, &DNS_PROXY)
    }

    /// One that knows nothing of IP_PKTINFO.
    #[must_use]
    pub fn plain(pod: &Pod) -> DnsProxy {
        DnsProxy::with(pod, User::PROXY, &["--plain", DNS_PROXY[0], DNS_PROXY[1]])
    }

    /// With any ids and arguments of `pod-dns proxy`.
    #[must_use]
    pub fn with(pod: &Pod, user: User, arguments: &[&str]) -> DnsProxy {
        let mut command = program(pod, "istio-proxy", user);
        command.arg("proxy").args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start pod-dns");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("read what pod-dns says");
        assert_eq!(line, "ready\n", "pod-dns could not bind {arguments:?}");
        let nonblocking = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
        fcntl(output.get_ref(), nonblocking).expect("make the pipe non-blocking");
        DnsProxy { child, output }
    }

    /// A line for each question since the last call: `udp CLIENT at ADDRESS`, or `unanswered ..` and the
    /// reason. A question is written down before it is answered.
    pub fn take_questions(&mut self) -> Vec<String> {
        let mut text = String::new();
        // "Nothing more for now" is an error that comes after what was there has been read.
        let _ = self.output.read_to_string(&mut text);
        text.lines().map(str::to_owned).collect()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for DnsProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an application in the pod prints that asks `servers` in one of the ways of `pod-dns ask`; its
/// complaint, if it fails.
#[must_use]
pub fn ask(pod: &Pod, user: User, way: &str, servers: &[&str]) -> String {
    let output = program(pod, "app", user).arg("ask").arg(way).args(servers).output().expect("start pod-dns");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

fn program(pod: &Pod, container: &str, user: User) -> Command {
    let mut command = unprivileged(&binary("pod-dns"), user).expect("pod-dns is built");
    pod.netns().enter(&mut command, Some(&pod.container(container)));
    command
}
