//! One lock per node: holding a [`NodeLock`] is the permission to change pins, maps and attachments.
//!
//! It lies where the protected things are: on the bpf file system's own directory, and on the state
//! directory. So two configurations that share only one of them exclude each other, too. A wait has an end,
//! and an error names who holds the lock.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use crate::node::{Node, private};
use crate::path_error::{PathError, is_gone};

/// A wait that is longer than this is logged.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made or opened.
    #[error("{0}; is the directory there and writable?")]
    Open(PathError),
    /// flock(2) failed.
    #[error(transparent)]
    Lock(PathError),
    /// Somebody else held it all the time.
    #[error(
        "waited {waited:.0?} for the lock on {path}, held by {holder}; let it finish or end it, then try again"
    )]
    Timeout {
        /// The directory.
        path: PathBuf,
        /// How long.
        waited: Duration,
        /// Who holds it.
        holder: Holder,
    },
}

/// The process that holds a lock, as far as /proc tells.
#[derive(Debug)]
pub struct Holder(Option<(i32, String)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, command)) => write!(f, "process {pid} ({command})"),
            None => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// The node's lock, held until dropped. The kernel releases it when the process ends, however that happens.
#[derive(Debug)]
pub struct NodeLock {
    _held: Vec<Flock<File>>,
}

impl NodeLock {
    /// Waits for the lock, [`Node::lock_timeout`] at most.
    ///
    /// # Errors
    /// A directory cannot be opened, or somebody else holds the lock for too long.
    pub fn acquire(node: &Node) -> Result<NodeLock, Error> {
        let begin = Instant::now();
        let mut held = Vec::new();
        for path in protected(node)? {
            held.push(wait(&path, begin, node.lock_timeout)?);
        }
        Ok(NodeLock { _held: held })
    }
}

/// The directories to lock, always in this order: two calls never wait for each other in a circle.
fn protected(node: &Node) -> Result<Vec<PathBuf>, Error> {
    private::make_dir(&node.state_dir).map_err(Error::Open)?;
    // Where there is no such directory there are no pins to protect, and what needs them says so itself.
    Ok([&node.bpffs, &node.state_dir].into_iter().filter(|path| !is_gone(path)).cloned().collect())
}

fn wait(path: &Path, begin: Instant, patience: Duration) -> Result<Flock<File>, Error> {
    let file =
        File::open(path).map_err(PathError::at("open the directory to lock", path)).map_err(Error::Open)?;
    let metadata = file.metadata().map_err(PathError::at("look at", path)).map_err(Error::Lock)?;
    let failed =
        |errno: Errno| Error::Lock(PathError { what: "lock", path: path.into(), source: errno.into() });
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(failed(errno)),
    };
    // The kernel queues those that wait; a thread of its own lets this one give up. Should the lock come too
    // late, the message has no receiver, and with it the lock is dropped.
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)));
    let left = || patience.saturating_sub(begin.elapsed());
    let mut answer = receiver.recv_timeout(left().min(NOTICEABLE));
    if answer.is_err() {
        tracing::warn!(path = %path.display(), holder = %holder(&metadata), "waiting for the node's lock");
        answer = receiver.recv_timeout(left());
    }
    match answer {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err((_, errno))) => Err(failed(errno)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(Error::Timeout { path: path.into(), waited: begin.elapsed(), holder: holder(&metadata) })
        }
    }
}

/// Looks the lock's owner up in /proc/locks (proc_locks(5)): kind, mode, access, pid, `major:minor:inode`.
fn holder(locked: &fs::Metadata) -> Holder {
    let device = format!("{:02x}:{:02x}:{}", major(locked.dev()), minor(locked.dev()), locked.ino());
    let pid = fs::read_to_string("/proc/locks").ok().and_then(|text| pid_of(&text, &device));
    Holder(pid.map(|pid| (pid, command(pid).unwrap_or_else(|_| "its command cannot be read".into()))))
}

fn pid_of(locks: &str, device: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        // Those that wait have `->` in the second place.
        let fields: Vec<_> = line.split_whitespace().skip(1).collect();
        (*fields.first()? == "FLOCK" && *fields.get(4)? == device).then(|| fields.get(3)?.parse().ok())?
    })
}

fn command(pid: i32) -> io::Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    Ok(words.join(" ").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        let base = std::env::temp_dir().join(format!("redirect-lock-{name}-{}", std::process::id()));
        fs::create_dir_all(base.join("bpf")).unwrap();
        let mut node = Node::new(base.join("bpf"), base.join("run"));
        node.lock_timeout = Duration::from_millis(200);
        node
    }

    #[test]
    fn two_state_directories_with_one_bpffs_exclude_each_other_and_the_holder_is_named() {
        let node = node("two");
        let other = Node { state_dir: node.state_dir.with_file_name("other"), ..node.clone() };
        let held = NodeLock::acquire(&node).unwrap();
        let text = NodeLock::acquire(&other).unwrap_err().to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains(&node.bpffs.display().to_string()), "{text}");
        drop(held);
        NodeLock::acquire(&other).unwrap();
        fs::remove_dir_all(node.bpffs.parent().unwrap()).unwrap();
    }

    #[test]
    fn one_state_directory_with_two_bpffs_excludes_too() {
        let node = node("one");
        let other = Node { bpffs: node.bpffs.with_file_name("nowhere"), ..node.clone() };
        let held = NodeLock::acquire(&node).unwrap();
        assert!(matches!(NodeLock::acquire(&other), Err(Error::Timeout { .. })));
        drop(held);
        // The one that gave up does not take it later.
        std::thread::sleep(Duration::from_millis(50));
        NodeLock::acquire(&other).unwrap();
        fs::remove_dir_all(node.bpffs.parent().unwrap()).unwrap();
    }

    #[test]
    fn waiters_are_not_holders() {
        let text =
            "1: FLOCK  ADVISORY  WRITE 42 00:2e:1 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 43 00:2e:1 0 EOF\n";
        assert_eq!(pid_of(text, "00:2e:1"), Some(42));
        assert_eq!(pid_of("1: -> FLOCK  ADVISORY  WRITE 43 00:2e:1 0 EOF\n", "00:2e:1"), None);
        assert_eq!(pid_of("2: POSIX  ADVISORY  WRITE 7 00:2e:1 0 EOF\n", "00:2e:1"), None);
    }
}
