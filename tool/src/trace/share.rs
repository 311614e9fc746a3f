//! One reader of the programs' buffer, many readers of it.
//!
//! Who holds the lock of `trace.lock` leads: it answers at `trace.sock` and sends each record, one a line, to
//! everybody who is connected. A reader that is too slow loses records, is told how many, and holds up
//! no other reader.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use redirect_user::node::{Node, private};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// How many records are kept for `--since`.
const KEPT: usize = 10_000;
/// How many bytes may wait for a reader: some thousand records.
const WAITING: usize = 1 << 20;

fn socket_of(node: &Node) -> PathBuf {
    node.state_dir.join("trace.sock")
}

/// The reader that leads.
pub(super) struct Hub {
    path: PathBuf,
    listener: UnixListener,
    state: Mutex<State>,
    _lock: Flock<File>,
}

#[derive(Default)]
struct State {
    readers: Vec<Known>,
    kept: VecDeque<(Instant, String)>,
}

/// Another reader.
struct Known {
    stream: UnixStream,
    waiting: Vec<u8>,
    lost: u64,
}

impl Known {
    fn send(&mut self, line: &str) {
        if self.waiting.len() > WAITING {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            self.waiting.extend(format!("lost {}\n", self.lost).bytes());
            self.lost = 0;
        }
        self.waiting.extend(line.bytes().chain([b'\n']));
    }

    /// Writes what it takes now; false when it has gone.
    fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match self.stream.try_write(&self.waiting) {
                Ok(0) => return false,
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Hub {
    /// Takes the lead if it is free.
    pub(super) fn new(node: &Node) -> Result<Option<Hub>> {
        let lock = node.state_dir.join("trace.lock");
        private::make_dir(&node.state_dir)?;
        let file = private::open(File::options().write(true), &lock);
        let file = file.with_context(|| format!("cannot open {}", lock.display()))?;
        let Ok(held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        let path = socket_of(node);
        let _ = fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
        Ok(Some(Hub { path, listener, state: Mutex::default(), _lock: held }))
    }

    /// Waits for a reader, and how far back it wants to see.
    pub(super) async fn asked(&self) -> io::Result<(UnixStream, Duration)> {
        let (mut stream, _) = self.listener.accept().await?;
        let asked = tokio::time::timeout(Duration::from_millis(200), stream.read_u64()).await;
        let milliseconds = asked.ok().and_then(Result::ok).unwrap_or(0);
        Ok((stream, Duration::from_millis(milliseconds)))
    }

    /// Notes a reader, and sends what was kept.
    pub(super) fn welcome(&self, (stream, since): (UnixStream, Duration)) {
        let Ok(mut state) = self.state.lock() else { return };
        let mut known = Known { stream, waiting: Vec::new(), lost: 0 };
        let now = Instant::now();
        let kept = state.kept.iter().filter(|(at, _)| !since.is_zero() && now.duration_since(*at) <= since);
        kept.for_each(|(_, hex)| known.send(hex));
        if known.flush() {
            state.readers.push(known);
        }
    }

    /// Hands a record on.
    pub(super) fn pass_on(&self, hex: &str) {
        let Ok(mut state) = self.state.lock() else { return };
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back((Instant::now(), hex.to_owned()));
        state.readers.iter_mut().for_each(|known| known.send(hex));
    }

    /// Writes what waits for others.
    pub(super) fn flush(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.readers.retain_mut(Known::flush);
        }
    }

    /// Whether there is no other reader.
    pub(super) fn is_alone(&self) -> bool {
        self.state.lock().is_ok_and(|state| state.readers.is_empty())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.flush();
        let _ = fs::remove_file(&self.path);
    }
}

/// What a follower is told.
pub(super) enum Told {
    /// A record, as aya-log writes it.
    Record(String),
    /// So many were lost on the way from the reader that leads.
    Lost(u64),
    /// The reader that leads has gone.
    Over,
}

/// A reader that gets its records from the one that leads.
pub(super) struct Follower {
    lines: Lines<BufReader<OwnedReadHalf>>,
    // The other end takes a closed half for the end.
    _write: OwnedWriteHalf,
}

impl Follower {
    /// Asks for records; `None` where there is no answer.
    pub(super) async fn new(node: &Node, since: Option<Duration>) -> Option<Follower> {
        let mut stream = UnixStream::connect(socket_of(node)).await.ok()?;
        let since = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        stream.write_u64(since).await.ok()?;
        let (read, write) = stream.into_split();
        Some(Follower { lines: BufReader::new(read).lines(), _write: write })
    }

    /// Waits for the next word.
    pub(super) async fn told(&mut self) -> Told {
        let Ok(Some(line)) = self.lines.next_line().await else { return Told::Over };
        match line.strip_prefix("lost ").and_then(|count| count.parse().ok()) {
            Some(count) => Told::Lost(count),
            None => Told::Record(line),
        }
    }
}
