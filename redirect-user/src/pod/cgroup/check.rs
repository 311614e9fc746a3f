//! Whether programs can be attached to a cgroup at all: it is cgroup v2, alive, and no cgroup above it
//! forbids it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs, statfs};

use super::error::Error;
use crate::kernel::hook::Hook;
use crate::kernel::sys;
use crate::path_error::PathError;

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` of `linux/bpf.h`.
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// Whether a path is on a cgroup v2 file system.
pub(super) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Checks the pod's cgroup `path` below the mount `root`.
pub(super) fn usable(root: &Path, path: &Path, hooks: &[Hook]) -> Result<(), Error> {
    let cgroup = open(path)?;
    let kind = fstatfs(&cgroup).map_err(|error| failed("look at", path, error.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(Error::NotCgroup2 { path: path.to_owned() });
    }
    alive(&cgroup, path)?;
    for hook in hooks.iter().copied().filter(|hook| hook.on_cgroup()) {
        // On most nodes nothing runs here; then no level is asked by itself.
        let asked = sys::runs_any(&cgroup, hook);
        let cgroup = path.to_owned();
        if asked.map_err(|source| Error::Query { cgroup, hook, source })? {
            allowed(root, path, hook)?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, Error> {
    match File::open(path) {
        Ok(cgroup) => Ok(cgroup),
        // It was there a moment ago.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Dying { path: path.to_owned() }),
        Err(error) => Err(failed("open", path, error)),
    }
}

/// Whether an open cgroup still exists: the directory of a removed one stays open, but has no files any more.
///
/// # Errors
/// [`Error::Dying`], or the file cannot be opened for another reason.
pub fn alive(cgroup: &File, path: &Path) -> Result<(), Error> {
    let events = openat(cgroup.as_fd(), "cgroup.events", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    match events {
        Ok(_) => Ok(()),
        Err(Errno::ENOENT | Errno::ENODEV) => Err(Error::Dying { path: path.to_owned() }),
        Err(error) => Err(failed("read cgroup.events of", path, error.into())),
    }
}

/// Repeats the kernel's rule (`hierarchy_allows_attach` in kernel/bpf/cgroup.c), because its EPERM does not
/// say whose program is in the way: going up from the pod, the first cgroup that has a program decides, and
/// one that was attached with neither flag forbids every descendant's.
fn allowed(root: &Path, path: &Path, hook: Hook) -> Result<(), Error> {
    for cgroup in path.ancestors().take_while(|ancestor| ancestor.starts_with(root)) {
        let directory = open(cgroup)?;
        let (programs, flags) = sys::programs_on(directory.as_fd(), hook).map_err(|source| Error::Query {
            cgroup: cgroup.to_owned(),
            hook,
            source,
        })?;
        // On the pod's own cgroup, a link needs the programs that are there to be attached with multi, as
        // links are.
        let harmless = if cgroup == path { ALLOW_MULTI } else { ALLOW_MULTI | ALLOW_OVERRIDE };
        match programs.first() {
            Some(_) if flags & harmless != 0 => return Ok(()),
            Some(program) => {
                return Err(Error::Exclusive { cgroup: cgroup.to_owned(), hook, program: *program });
            }
            None => {}
        }
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    PathError { what, path: path.to_owned(), source }.into()
}

/// Whether a cgroup has a process in it or below; that it cannot be looked at, counts as yes.
pub(crate) fn populated(path: &Path) -> bool {
    match std::fs::read_to_string(path.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 1"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}
