//! Sockets that one worker makes and another uses: a socket belongs for good to the namespace and the cgroup
//! that it was made in.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Result, bail};
use harness::Family;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::load;

/// The kernel passes at most this many descriptors with one message (`SCM_MAX_FD`).
const FDS_PER_MESSAGE: usize = 253;

/// Makes sockets and passes them on; a byte comes back for every message, so that the wire never overflows.
pub(crate) fn make(wire: &OwnedFd, family: Family, count: usize) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let sockets: Vec<_> =
            (0..left.min(FDS_PER_MESSAGE)).map(|_| load::tcp(family)).collect::<io::Result<_>>()?;
        let fds: Vec<RawFd> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        let data = [IoSlice::new(b"s")];
        sendmsg::<()>(wire.as_raw_fd(), &data, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
        File::from(wire.try_clone()?).read_exact(&mut [0])?;
        left -= sockets.len();
    }
    Ok(())
}

/// Takes as many sockets as the other side makes.
pub(crate) fn take(wire: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut byte = [0];
        let mut data = [IoSliceMut::new(&mut byte)];
        let mut room = nix::cmsg_space!([RawFd; FDS_PER_MESSAGE]);
        let message =
            recvmsg::<()>(wire.as_raw_fd(), &mut data, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let before = sockets.len();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just installed these descriptors for us.
                sockets.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if sockets.len() == before {
            bail!("the worker in the peer pod passed no sockets");
        }
        File::from(wire.try_clone()?).write_all(b"k")?;
    }
    Ok(sockets)
}
