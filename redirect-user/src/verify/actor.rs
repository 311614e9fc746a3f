//! A process in the scratch pod: the application, or the sidecar. A socket belongs to the cgroup of the
//! process that makes it, so a thread of ours would not do.
//!
//! It is this very binary, started again with a hidden subcommand. It takes orders on stdin, one JSON line
//! each, and answers each with one line on stdout. It ends when stdin ends, and when its parent dies.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use redirect_common::addr::Family;
use serde::{Deserialize, Serialize};

use super::talk::{self, Got};
use super::wire;

/// The hidden subcommand of `redirect` that is such a process.
pub const SUBCOMMAND: &str = "verify-actor";

/// Where a process goes and who it is.
#[derive(Clone, Debug)]
pub struct Role {
    /// The network namespace.
    pub netns: PathBuf,
    /// The cgroup.
    pub cgroup: PathBuf,
    /// uid and gid.
    pub id: u32,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Serve TCP on a port of all addresses under a name, over both families or IPv4 alone.
    Serve { who: String, port: u16, with_ipv6: bool },
    /// Answer datagrams to a port of localhost.
    Answer { who: String, port: u16, with_ipv6: bool },
    /// Connect.
    Dial(SocketAddr),
    /// Ask a DNS server, and wait so many milliseconds for an answer.
    Ask(SocketAddr, u64),
}

/// What came of it: [`Got`] for a client, and `error` set for a server that could not be opened.
fn obey(order: Order) -> Got {
    let done = match order {
        Order::Dial(to) => return talk::dial(to),
        Order::Ask(server, patience) => return talk::ask(server, Duration::from_millis(patience)),
        Order::Serve { who, port, with_ipv6 } => serve(&who, port, with_ipv6),
        Order::Answer { who, port, with_ipv6 } => answer(&who, port, with_ipv6),
    };
    Got { error: done.err().map(|error| error.to_string()), ..Got::default() }
}

fn serve(who: &str, port: u16, with_ipv6: bool) -> io::Result<()> {
    for family in wire::families(with_ipv6) {
        let (listener, who) = (talk::listener(family, port)?, who.to_owned());
        std::thread::spawn(move || talk::serve(&listener, &who));
    }
    Ok(())
}

fn answer(who: &str, port: u16, with_ipv6: bool) -> io::Result<()> {
    for family in wire::families(with_ipv6) {
        let at: SocketAddr = match family {
            Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
        };
        let (socket, who) = (UdpSocket::bind(at)?, who.to_owned());
        std::thread::spawn(move || talk::answer(&socket, &who));
    }
    Ok(())
}

/// The whole life of such a process.
///
/// # Errors
/// It cannot go where it belongs, or its parent went away.
pub fn live(role: &Role) -> io::Result<()> {
    take_place(role)?;
    println!("{}", serde_json::to_string(&Got::default())?);
    for line in io::stdin().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        println!("{}", serde_json::to_string(&obey(order))?);
        io::stdout().flush()?;
    }
    Ok(())
}

fn take_place(role: &Role) -> io::Result<()> {
    let netns = File::open(&role.netns)?;
    fs::write(role.cgroup.join("cgroup.procs"), "0")?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(role.id))?;
    setuid(Uid::from_raw(role.id))?;
    // The kernel clears it when the user changes.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

/// The other side: a running process in the pod.
pub(super) struct Actor {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    /// Starts one and waits until it is in its place.
    pub(super) fn start(role: &Role) -> io::Result<Actor> {
        let mut child = Command::new("/proc/self/exe")
            .arg(SUBCOMMAND)
            .arg("--netns")
            .arg(&role.netns)
            .arg("--cgroup")
            .arg(&role.cgroup)
            .arg("--id")
            .arg(role.id.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C on the terminal is the parent's business.
            .process_group(0)
            .spawn()?;
        let gone = || io::Error::other("its pipes are not there");
        let orders = Some(child.stdin.take().ok_or_else(gone)?);
        let answers = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        let mut actor = Actor { child, orders, answers };
        actor.answer()?;
        Ok(actor)
    }

    /// Its process.
    pub(super) fn netns(&self) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join("ns/net")
    }

    /// Gives an order and waits for what comes of it.
    pub(super) fn order(&mut self, order: &Order) -> io::Result<Got> {
        let pipe = self.orders.as_mut().ok_or_else(|| io::Error::other("it has been stopped"))?;
        writeln!(pipe, "{}", serde_json::to_string(order)?)?;
        let got = self.answer()?;
        Ok(got)
    }

    fn answer(&mut self) -> io::Result<Got> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("a process of the scratch pod has ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
