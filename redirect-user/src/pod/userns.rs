//! User namespaces: with `hostUsers: false` the uid that the pod calls 1337 is another one to the kernel's
//! hooks, which see ids of the initial user namespace. The pod's network namespace belongs to the pod's user
//! namespace; that one's id map translates.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// Why ids could not be translated.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The owner of the network namespace cannot be asked for.
    #[error("cannot find the user namespace that owns the pod's network namespace: {source}")]
    Owner { source: io::Error },
    /// The id map cannot be read.
    #[error("cannot read {what} of the pod's user namespace: {source}")]
    Map {
        /// `uid_map` or `gid_map`.
        what: &'static str,
        source: io::Error,
    },
    /// The pod's user namespace does not have the id.
    #[error("{what} {id} does not exist in the pod's user namespace; the sidecar cannot run as it")]
    Unmapped {
        /// `uid` or `gid`.
        what: &'static str,
        id: u32,
    },
}

/// How a pod's ids look from the initial user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// `uid_map` and `gid_map`; none where the pod has no user namespace of its own.
    maps: Option<[String; 2]>,
}

impl IdMaps {
    /// The maps of the user namespace that owns a network namespace.
    ///
    /// # Errors
    /// It cannot be examined.
    pub fn of(netns: &File) -> Result<IdMaps, Error> {
        let owner = owner(netns).map_err(|source| Error::Owner { source })?;
        if is_own(&owner).map_err(|source| Error::Owner { source })? {
            return Ok(IdMaps { maps: None });
        }
        Ok(IdMaps { maps: Some(read_maps(&owner)?) })
    }

    /// A uid of the pod.
    ///
    /// # Errors
    /// The pod does not have it.
    pub fn uid(&self, id: u32) -> Result<u32, Error> {
        self.find(0, id).ok_or(Error::Unmapped { what: "uid", id })
    }

    /// A gid of the pod.
    ///
    /// # Errors
    /// The pod does not have it.
    pub fn gid(&self, id: u32) -> Result<u32, Error> {
        self.find(1, id).ok_or(Error::Unmapped { what: "gid", id })
    }

    fn find(&self, map: usize, id: u32) -> Option<u32> {
        self.maps.as_ref().map_or(Some(id), |maps| translate(&maps[map], id))
    }
}

/// `NS_GET_USERNS` of `linux/nsfs.h`: the user namespace that owns another namespace.
fn owner(netns: &File) -> io::Result<File> {
    nix::ioctl_none!(ns_get_userns, 0xb7, 0x1);
    // SAFETY: the ioctl takes no argument and returns a new descriptor.
    let fd = unsafe { ns_get_userns(netns.as_raw_fd()) }?;
    // SAFETY: the descriptor is new and ours.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn is_own(userns: &File) -> io::Result<bool> {
    let (ours, theirs) = (fs::metadata("/proc/self/ns/user")?, userns.metadata()?);
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}

/// A user namespace without processes does not show its maps; so a child enters it and waits to be looked
/// at.
fn read_maps(userns: &File) -> Result<[String; 2], Error> {
    let failed = |what: &'static str| move |source: io::Error| Error::Map { what, source };
    let (gate_read, gate_write) = nix::unistd::pipe().map_err(|e| failed("uid_map")(e.into()))?;
    let (ready_read, ready_write) = nix::unistd::pipe().map_err(|e| failed("uid_map")(e.into()))?;
    // SAFETY: the child only makes system calls that are safe after fork and ends by _exit.
    match unsafe { fork() }.map_err(|e| failed("uid_map")(e.into()))? {
        ForkResult::Child => {
            drop(gate_write);
            let entered = u8::from(setns(userns, CloneFlags::CLONE_NEWUSER).is_ok());
            let _ = nix::unistd::write(&ready_write, &[entered]);
            let _ = nix::unistd::read(&gate_read, &mut [0]);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((gate_read, ready_write));
            let mut entered = [0];
            let answered = nix::unistd::read(&ready_read, &mut entered);
            let map = |what: &'static str| {
                if answered != Ok(1) || entered != [1] {
                    return Err(failed(what)(io::Error::from(io::ErrorKind::PermissionDenied)));
                }
                fs::read_to_string(format!("/proc/{child}/{what}")).map_err(failed(what))
            };
            let maps = map("uid_map").and_then(|uids| Ok([uids, map("gid_map")?]));
            drop(gate_write);
            let _ = waitpid(child, None);
            maps
        }
    }
}

/// Looks an id up in a map of lines `inside outside count` (user_namespaces(7)).
fn translate(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(inside)?;
        (offset < count).then(|| outside + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_the_range_that_contains_it() {
        let map = "         0     100000      1000\n      1000     200000      1000\n";
        assert_eq!(translate(map, 0), Some(100_000));
        assert_eq!(translate(map, 999), Some(100_999));
        assert_eq!(translate(map, 1337), Some(200_337));
        assert_eq!(translate(map, 2000), None);
        assert_eq!(translate("0 0 4294967295\n", 1337), Some(1337));
    }
}
