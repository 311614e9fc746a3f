//! The sidecar's listeners of a pod that runs already. The programs learn listeners when they begin to
//! listen, so after the maps were lost the sockets are fetched from the sidecar's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{SockaddrStorage, getsockname};
use redirect_common::addr::Family;
use redirect_common::{Caller, Endpoint, LISTENER_PLACES, ListenerKey, Origin, PodConfig, role};

use crate::attach::entries;
use crate::attach::record::Attachment;
use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::pod::cgroup;

/// Registers the sockets in the pod's cgroup that listen on the sidecar's ports; returns how many. Those that
/// another user than the proxy made are marked, so that they are given nothing.
///
/// # Errors
/// A map is not pinned or does not take a socket.
pub(crate) fn register(node: &Node, attachment: &Attachment) -> Result<usize, SyscallError> {
    let listeners = sys::obj_get(&pins::current(node).map("LISTENERS"))?;
    let origin = sys::obj_get(&pins::current(node).map("ORIGIN"))?;
    let (config, _) = entries::of(attachment);
    let mut places: BTreeMap<(u16, i32), u32> = BTreeMap::new();
    let mut count = 0;
    for listener in find(attachment, &config) {
        if !config.is_proxy(&listener.maker) {
            let (port, uid) = (listener.port, listener.maker.uid);
            tracing::warn!(port, uid, "a socket of another user than the proxy listens on the proxy's port");
            let mark = Origin { dst: Endpoint::NONE, role: role::FOREIGN };
            sys::map_update(&origin, &listener.fd.as_raw_fd(), &mark)?;
            continue;
        }
        let place = places.entry((listener.port, listener.domain)).or_default();
        if *place == LISTENER_PLACES {
            continue;
        }
        let family = if listener.domain == libc::AF_INET { Family::V4 } else { Family::V6 };
        let key = ListenerKey::new(attachment.cookie, listener.port.into(), family, *place);
        sys::map_update(&listeners, &key, &(listener.fd.as_raw_fd() as u64))?;
        *place += 1;
        count += 1;
    }
    Ok(count)
}

/// A listening socket of the sidecar, as a descriptor of our own.
struct Listener {
    fd: OwnedFd,
    port: u16,
    domain: i32,
    /// Whose process made it: the owner of the socket's inode (`sock_alloc()`), as this namespace sees it.
    maker: Caller,
}

fn find(attachment: &Attachment, config: &PodConfig) -> Vec<Listener> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for pid in cgroup::pids(&attachment.cgroup).unwrap_or_default() {
        // A process that ends while it is looked at has no sockets.
        for fd in sockets_of(pid).unwrap_or_default() {
            let Some(listener) = listener(fd, attachment.cookie) else { continue };
            if config.is_listener(listener.port.into())
                && sys::socket_cookie(&listener.fd).is_ok_and(|cookie| seen.insert(cookie))
            {
                found.push(listener);
            }
        }
    }
    found
}

fn sockets_of(pid: i32) -> std::io::Result<Vec<OwnedFd>> {
    let process = sys::open_process(pid).map_err(|error| error.source)?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_socket =
            fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(number)) = (is_socket, number)
            && let Ok(fd) = sys::descriptor_of(&process, number)
        {
            sockets.push(fd);
        }
    }
    Ok(sockets)
}

fn listener(fd: OwnedFd, cookie: u64) -> Option<Listener> {
    if !sys::is_listening(&fd).ok()? || sys::netns_cookie(&fd).ok()? != cookie {
        return None;
    }
    let domain = sys::socket_domain(&fd).ok()?;
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
    let port = v4.or_else(|| address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))?;
    let inode = nix::sys::stat::fstat(&fd).ok()?;
    let maker = Caller { uid: inode.st_uid, gid: inode.st_gid };
    Some(Listener { fd, port, domain, maker })
}
