//! Whether a cgroup still exists and has processes, asked by its id. A path says less: another mount
//! namespace does not have it, and a new cgroup may have taken it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// What is known about a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It has processes, itself or below it.
    Populated,
    /// It exists, and is empty.
    Empty,
    /// The kernel has no cgroup of that id any more.
    Gone,
    /// It cannot be looked at from here.
    Unknown,
}

/// Asks about the cgroup with this id; `path` is where it was.
#[must_use]
pub fn life(path: &Path, id: u64) -> Life {
    match open(path, id) {
        Ok(cgroup) => populated(&cgroup),
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Life::Gone,
        Err(_) => Life::Unknown,
    }
}

/// The pids in the cgroup and below it, as this process sees them; a process of another pid namespace is 0.
///
/// # Errors
/// The directory cannot be read.
pub fn pids(path: &Path) -> io::Result<Vec<i32>> {
    let mut found: Vec<i32> =
        fs::read_to_string(path.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A container's cgroup may go away meanwhile.
            found.extend(pids(&entry.path()).unwrap_or_default());
        }
    }
    Ok(found)
}

/// Opens the directory by its path if that is still the same cgroup, else by its id.
fn open(path: &Path, id: u64) -> io::Result<OwnedFd> {
    if let Ok(file) = File::open(path)
        && file.metadata()?.ino() == id
        && super::check::is_cgroup2(path)?
    {
        return Ok(file.into());
    }
    let mounts = super::mount::mounts()?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for mount in mounts {
        match File::open(&mount).and_then(|mount| open_by_id(&mount, id)) {
            Ok(cgroup) => return Ok(cgroup),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// `struct file_handle` with the eight bytes that kernfs puts there (`FILEID_KERNFS`, `linux/exportfs.h`,
/// Linux 5.5).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// open_by_handle_at(2): ESTALE when there is no cgroup of this id, EPERM without CAP_DAC_READ_SEARCH.
fn open_by_id(mount: &File, id: u64) -> io::Result<OwnedFd> {
    const FILEID_KERNFS: i32 = 0xfe;
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `Handle` is laid out as the kernel's struct with its flexible array of the eight bytes that it
    // announces.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut handle, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn populated(cgroup: &OwnedFd) -> Life {
    let mut text = String::new();
    let events = openat(cgroup.as_fd(), "cgroup.events", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    match events.map(File::from) {
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENODEV) => return Life::Gone,
        Err(_) => return Life::Unknown,
        Ok(mut file) => match file.read_to_string(&mut text) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Life::Gone,
            Err(_) => return Life::Unknown,
            Ok(_) => {}
        },
    }
    if text.lines().any(|line| line == "populated 1") { Life::Populated } else { Life::Empty }
}
