//! What goes wrong: a verb is killed at a step or in a system call, a system call fails, a mount is not
//! there, files are not what they should be, a map is full.
//!
//! System calls fail and kill by strace's fault injection, so that every call of a verb is a step, and a new
//! one is tried without anybody listing it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use harness::Node;
use redirect_user::kernel::pins::ABI_VARIABLE;

use super::scene::Ended;

/// System calls through which a verb changes something or learns something. Those by which a program is
/// loaded are left out where nothing but the loader makes them.
const SYSCALLS: &str = "bpf,openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,\
    pwrite64,fsync,fdatasync,ftruncate,flock,fcntl,socket,bind,connect,sendto,sendmsg,recvfrom,recvmsg,\
    setns,statfs,fstatfs,statx,newfstatat,getdents64,fchmod,fchmodat,pidfd_open,pidfd_getfd,getsockopt,\
    setsockopt,clone3,read";

/// What goes wrong while a verb runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed at one of the sources' own fault points.
    Point(String),
    /// The process is killed as it makes this system call for the n-th time.
    Killed(String, usize),
    /// The n-th call of this kind fails with this errno.
    Fails(String, usize, &'static str),
    /// The process does not see what is mounted here.
    Unmounted(PathBuf),
    /// Files in the state directory that no version of ours has written.
    Litter(Litter),
    /// A map of the node has no room.
    Full(&'static str),
    /// The verb is carried out by a plugin or tool of the next ABI version.
    OtherVersion,
}

/// A file that should not be there, or not like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Litter {
    /// A record without a byte in it.
    Empty,
    /// Text that is no JSON.
    Garbage,
    /// A record with fields that this version does not know and without those that it does.
    Foreign,
    /// A directory where a record would be.
    Directory,
    /// A folder among the pins that belongs to no record.
    Pins,
    /// The folder of another version beside this one's.
    OtherVersion,
    /// A record that is a symbolic link to itself: it is there, and cannot be opened.
    Loop,
    /// The same among the pins.
    PinLoop,
}

impl Litter {
    pub(crate) const ALL: [Litter; 8] = [
        Litter::Empty,
        Litter::Garbage,
        Litter::Foreign,
        Litter::Directory,
        Litter::Pins,
        Litter::OtherVersion,
        Litter::Loop,
        Litter::PinLoop,
    ];

    fn put(self, node: &Node) -> Vec<PathBuf> {
        let attachments = node.state_dir().join("attachments");
        let ours = node.bpffs().join("redirect-cni");
        let version = ours.join(format!("v{}", redirect_common::ABI_VERSION));
        let record = attachments.join("litter.eth0.json");
        let made = match self {
            Litter::Empty | Litter::Garbage | Litter::Foreign => {
                let text = match self {
                    Litter::Garbage => "not a record\n",
                    Litter::Foreign => r#"{"version":99,"containerId":"litter","later":[1,2]}"#,
                    _ => "",
                };
                fs::create_dir_all(&attachments).and_then(|()| fs::write(&record, text))
            }
            Litter::Directory => fs::create_dir_all(&record),
            Litter::Pins => fs::create_dir_all(version.join("pods/litter/eth0")),
            Litter::OtherVersion => fs::create_dir_all(ours.join("v99/pods/litter/eth0")),
            Litter::Loop => {
                fs::create_dir_all(&attachments).and_then(|()| symlink("litter.eth0.json", &record))
            }
            Litter::PinLoop => {
                let pods = version.join("pods");
                fs::create_dir_all(&pods).and_then(|()| symlink("litter", pods.join("litter")))
            }
        };
        made.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        match self {
            Litter::Pins | Litter::PinLoop => vec![version.join("pods/litter")],
            Litter::OtherVersion => vec![ours.join("v99")],
            _ => vec![record],
        }
    }
}

impl Fault {
    /// Runs a verb with this fault; says whether it has come about, too: a call may not be made as often as
    /// the last time. `verb` gets the words that are put before its own command line.
    pub(crate) fn run(&self, node: &Node, verb: impl FnOnce(&[OsString]) -> Ended) -> (Ended, bool) {
        let mut words: Vec<OsString> = ["timeout", "--kill-after=2", "30"].map(OsString::from).into();
        let log = node.dir().join("strace");
        let mut marks: &[&str] = &[];
        match self {
            Fault::Point(step) => {
                let variable = format!("{}={step}", redirect_user::node::fault::VARIABLE);
                words.extend(["env".into(), variable.into()]);
            }
            Fault::Killed(call, nth) => {
                inject(&mut words, call, *nth, "signal=SIGKILL", &log);
                marks = &["killed by SIGKILL"];
            }
            Fault::Fails(call, nth, errno) => {
                inject(&mut words, call, *nth, &format!("error={errno}"), &log);
                marks = &["(INJECTED)"];
            }
            Fault::Unmounted(path) => {
                let script = r#"umount -l "$0" && exec "$@""#;
                words.extend(["unshare", "--mount", "sh", "-c", script].map(OsString::from));
                words.push(path.into());
            }
            Fault::Litter(litter) => {
                let made = litter.put(node);
                let ended = verb(&words);
                made.iter().for_each(|path| remove(path));
                return (ended, true);
            }
            Fault::OtherVersion => {
                let other = redirect_common::ABI_VERSION + 1;
                words.extend(["env".into(), format!("{ABI_VARIABLE}={other}").into()]);
            }
            Fault::Full(map) => {
                let filled = node.fill_map(map);
                let ended = verb(&words);
                drop(filled);
                return (ended, true);
            }
        }
        let ended = verb(&words);
        let text =
            if marks.is_empty() { String::new() } else { fs::read_to_string(&log).unwrap_or_default() };
        (ended, marks.iter().all(|mark| text.contains(mark)))
    }
}

/// A path and what is below it, if a verb has not removed it; a folder of pins has no files.
fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
}

/// A filter in the kernel lets all calls pass but the one that is meant, which takes much less time. Not
/// where a signal is injected: strace 6.1 forgets it then.
fn inject(words: &mut Vec<OsString>, call: &str, nth: usize, what: &str, log: &Path) {
    words.extend(["strace", "-f", "-qq", "-o"].map(OsString::from));
    words.push(log.into());
    if what.starts_with("error=") {
        words.push("--seccomp-bpf".into());
    }
    for option in [format!("trace={call}"), format!("raw={call}"), format!("inject={call}:{what}:when={nth}")]
    {
        words.extend(["-e".into(), option.into()]);
    }
}

/// How often a verb makes each system call, found by running it once.
pub(crate) fn count(node: &Node, verb: impl FnOnce(&[OsString]) -> Ended) -> Vec<(String, usize)> {
    let table = node.dir().join("strace");
    let words = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-o"].map(OsString::from);
    let traced = ["-e".into(), format!("trace={SYSCALLS}").into()];
    let words: Vec<_> = words.into_iter().chain([table.clone().into()]).chain(traced).collect();
    let ended = verb(&words);
    let text = fs::read_to_string(&table).unwrap_or_else(|error| panic!("strace: {error}: {ended:?}"));
    let rows = text.lines().filter_map(|line| {
        let (calls, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    });
    rows.filter(|(name, _)| name != "total").collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Point(step) => write!(f, "killed at {step}"),
            Fault::Killed(call, nth) => write!(f, "killed in {call} {nth}"),
            Fault::Fails(call, nth, errno) => write!(f, "{call} {nth} fails with {errno}"),
            Fault::Unmounted(path) => write!(f, "without {}", path.display()),
            Fault::Litter(litter) => write!(f, "with litter: {litter:?}"),
            Fault::Full(map) => write!(f, "with {map} full"),
            Fault::OtherVersion => write!(f, "by the next version"),
        }
    }
}
