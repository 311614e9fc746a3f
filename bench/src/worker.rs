//! A worker: a process of the benchmark in a pod, which runs loops of [`crate::load`] when it is told to.
//!
//! Orders and answers are lines of JSON on its standard input and output. Client sockets of another pod come
//! from a second worker in that pod, over a Unix socket: a socket belongs for good to the namespace and the
//! cgroup that it was made in, whoever uses it.

use std::io::{self, BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::{Family, Pod};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, SockaddrStorage, bind, listen, setsockopt, sockopt};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::load::{self, Pair};
use crate::passing;

/// The subcommand under which the benchmark starts itself as a worker.
pub(crate) const SUBCOMMAND: &str = "worker";

/// What a worker can be told to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Listen; connections are accepted from the listener of that number, in the order of the orders.
    Listen(SocketAddr),
    /// Whole connections, one after the other, round robin over the destinations, which are of one family.
    SetUp { to: Vec<SocketAddr>, listener: usize, count: usize, foreign: bool },
    /// One connection that stays, and what `SO_ORIGINAL_DST` says of it.
    Open { to: SocketAddr, listener: usize, foreign: bool },
    /// Round trips over the connection that was opened last.
    RoundTrips(usize),
    /// 64 KiB that many times over the connection that was opened last.
    Bulk(usize),
    /// That many connections, round robin over the destinations, to be held.
    Hold { to: Vec<SocketAddr>, listener: usize, count: usize },
    /// Closes all connections.
    Release,
    /// `getsockopt()` on a listener.
    GetOptions { listener: usize, count: usize },
    /// `connect()` of a UDP socket.
    ConnectUdp { to: SocketAddr, count: usize },
    /// Make sockets and pass them over the Unix socket.
    Make { v6: bool, count: usize },
}

/// How long the loop of an order took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// CPU time in nanoseconds for one pass of the loop.
    pub(crate) cpu: f64,
    /// Median from `connect()` to the end of `accept()`, nanoseconds; for [`Order::SetUp`] only.
    pub(crate) connected: f64,
    /// Median and 99th percentile of whole connections, nanoseconds; for [`Order::SetUp`] only.
    pub(crate) whole: [f64; 2],
}

/// A worker as the benchmark sees it. It ends when this goes out of scope.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    maker: Option<Box<Worker>>,
}

impl Worker {
    /// Starts a worker in a pod, with another one in `peer` that makes client sockets for it.
    pub(crate) fn start(pod: &Pod, peer: Option<&Pod>) -> Result<Worker> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut worker = Worker::spawn(pod, ours)?;
        if let Some(peer) = peer {
            worker.maker = Some(Box::new(Worker::spawn(peer, theirs)?));
        }
        Ok(worker)
    }

    fn spawn(pod: &Pod, wire: UnixStream) -> Result<Worker> {
        let wire = OwnedFd::from(wire);
        nix::fcntl::fcntl(&wire, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SUBCOMMAND).arg(wire.as_raw_fd().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        pod.netns().enter(&mut command, Some(&pod.container("bench")));
        let mut child = command.spawn().context("starting a worker")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take().context("a pipe")?);
        Ok(Worker {
            name: pod.name().to_owned(),
            child,
            orders,
            answers: BufReader::new(answers),
            maker: None,
        })
    }

    /// Gives an order and waits for its answer.
    pub(crate) fn run<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        if let (Some(maker), Order::SetUp { to, count, foreign: true, .. }) = (&mut self.maker, order) {
            maker.give(&Order::Make { v6: family_of(to) == Family::V6, count: *count })?;
        } else if let (Some(maker), Order::Open { to, foreign: true, .. }) = (&mut self.maker, order) {
            maker.give(&Order::Make { v6: to.is_ipv6(), count: 1 })?;
        }
        self.give(order)?;
        let answer = self.answer(order);
        if let Some(maker) = self.maker.as_mut().filter(|_| order.is_foreign()) {
            let _: Timing = maker.answer(order)?;
        }
        answer
    }

    fn give(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let pipe = self.orders.as_mut().context("the worker was stopped")?;
        pipe.write_all(line.as_bytes()).with_context(|| format!("the worker in {} has ended", self.name))
    }

    fn answer<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: std::result::Result<T, String> = serde_json::from_str(&line)
            .with_context(|| format!("{}: {} was answered with {line:?}", self.name, order.brief()))?;
        answer.map_err(|error| anyhow::anyhow!("{}: {}: {error}", self.name, order.brief()))
    }
}

impl Order {
    /// The order in a line: one may name thousands of destinations.
    fn brief(&self) -> String {
        let whole = format!("{self:?}");
        match whole.char_indices().nth(200) {
            Some((end, _)) => format!("{}.. ({} characters)", &whole[..end], whole.len()),
            None => whole,
        }
    }

    const fn is_foreign(&self) -> bool {
        matches!(self, Order::SetUp { foreign: true, .. } | Order::Open { foreign: true, .. })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's own side.
struct State {
    listeners: Vec<OwnedFd>,
    pairs: Vec<Pair>,
    wire: OwnedFd,
}

/// The life of a worker: it serves orders until its standard input ends.
pub(crate) fn main(wire: RawFd) -> Result<()> {
    settle();
    // SAFETY: the benchmark has passed this descriptor on for us alone.
    let wire = unsafe { OwnedFd::from_raw_fd(wire) };
    let mut state = State { listeners: Vec::new(), pairs: Vec::new(), wire };
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let outcome = state.obey(&serde_json::from_str(&line?)?).map_err(|error| format!("{error:#}"));
        serde_json::to_writer(&mut answers, &outcome)?;
        answers.write_all(b"\n")?;
        answers.flush()?;
    }
    Ok(())
}

/// All workers share the machine's last CPU, ahead of what else wants it; only one has work at a time.
fn settle() {
    let mut cpus = CpuSet::new();
    let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
    if cpus.set(last).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
    }
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    load::go_first();
}

impl State {
    fn obey(&mut self, order: &Order) -> Result<serde_json::Value> {
        let timing = match order {
            Order::Listen(at) => load::as_proxy(|| self.listen(*at)).map(|()| Timing::default()),
            Order::SetUp { to, listener, count, foreign } => self.set_up(to, *listener, *count, *foreign),
            Order::Open { to, listener, foreign } => {
                return Ok(serde_json::to_value(self.open(*to, *listener, *foreign)?)?);
            }
            Order::RoundTrips(count) => {
                let pair = self.pairs.last().context("no connection is open")?;
                timed(*count, || Ok(load::round_trips(pair, *count)?))
            }
            Order::Bulk(chunks) => {
                let pair = self.pairs.last().context("no connection is open")?;
                timed(*chunks, || Ok(load::bulk(pair, *chunks).map(drop)?))
            }
            Order::Hold { to, listener, count } => self.hold(to, *listener, *count),
            Order::Release => {
                self.pairs.clear();
                Ok(Timing::default())
            }
            Order::GetOptions { listener, count } => {
                let socket = &self.listeners[*listener];
                timed(*count, || Ok(load::get_options(socket, *count)?))
            }
            Order::ConnectUdp { to, count } => timed(*count, || Ok(load::connect_udp(*to, *count)?)),
            Order::Make { v6, count } => {
                let family = if *v6 { Family::V6 } else { Family::V4 };
                passing::make(&self.wire, family, *count).map(|()| Timing::default())
            }
        };
        Ok(serde_json::to_value(timing?)?)
    }

    fn listen(&mut self, at: SocketAddr) -> Result<()> {
        let socket = load::tcp(Family::of(&at.ip()))?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if at.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(at)).with_context(|| format!("binding to {at}"))?;
        listen(&socket, Backlog::MAXCONN)?;
        self.listeners.push(socket);
        Ok(())
    }

    fn sockets(&self, family: Family, count: usize, foreign: bool) -> Result<Vec<OwnedFd>> {
        if foreign {
            return passing::take(&self.wire, count);
        }
        (0..count).map(|_| Ok(load::tcp(family)?)).collect()
    }

    fn set_up(&self, to: &[SocketAddr], listener: usize, count: usize, foreign: bool) -> Result<Timing> {
        let family = family_of(to);
        let sockets = self.sockets(family, count, foreign)?;
        let to: Vec<_> = to.iter().map(|to| SockaddrStorage::from(*to)).collect();
        let listener = self.listeners[listener].as_raw_fd();
        let mut laps = Vec::with_capacity(count);
        let start = load::cpu();
        for (socket, to) in sockets.into_iter().zip(to.iter().cycle()) {
            laps.push(load::lap(socket, to, listener, family)?);
        }
        let cpu = load::cpu() - start;
        let mut whole: Vec<_> = laps.iter().map(|lap| lap.whole).collect();
        let mut connected: Vec<_> = laps.iter().map(|lap| lap.connected).collect();
        whole.sort_unstable();
        connected.sort_unstable();
        let at =
            |sorted: &[Duration], share: usize| sorted[(sorted.len() - 1) * share / 100].as_nanos() as f64;
        Ok(Timing {
            cpu: cpu.as_nanos() as f64 / count as f64,
            connected: at(&connected, 50),
            whole: [at(&whole, 50), at(&whole, 99)],
        })
    }

    fn open(&mut self, to: SocketAddr, listener: usize, foreign: bool) -> Result<Option<SocketAddr>> {
        let socket =
            self.sockets(Family::of(&to.ip()), 1, foreign)?.pop().context("one socket was asked for")?;
        let pair = load::pair(socket, to, &self.listeners[listener])?;
        let original = load::as_proxy(|| load::original_dst(&pair.server, Family::of(&to.ip()))).ok();
        self.pairs.push(pair);
        Ok(original)
    }

    fn hold(&mut self, to: &[SocketAddr], listener: usize, count: usize) -> Result<Timing> {
        timed(count, || {
            for to in to.iter().cycle().take(count) {
                let pair = load::pair(load::tcp(Family::of(&to.ip()))?, *to, &self.listeners[listener])?;
                let original = load::as_proxy(|| load::original_dst(&pair.server, Family::of(&to.ip())))?;
                ensure!(original == *to, "SO_ORIGINAL_DST says {original} for a connection to {to}");
                self.pairs.push(pair);
            }
            Ok(())
        })
    }
}

fn family_of(to: &[SocketAddr]) -> Family {
    to.first().map_or(Family::V4, |to| Family::of(&to.ip()))
}

fn timed(count: usize, work: impl FnOnce() -> Result<()>) -> Result<Timing> {
    let start = load::cpu();
    work()?;
    Ok(Timing { cpu: (load::cpu() - start).as_nanos() as f64 / count as f64, ..Timing::default() })
}
