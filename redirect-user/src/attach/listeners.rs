//! The sidecar's listeners of a pod that runs already, and the DNS proxy's. The programs learn them when they
//! begin to listen, so after the maps were lost the sockets are fetched from the sidecar's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::sockopt::Ipv6V6Only;
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt};
use redirect_common::addr::Family;
use redirect_common::dns::{DnsProxy, proxy};
use redirect_common::{Caller, Endpoint, LISTENER_PLACES, ListenerKey, Origin, PodConfig, flags, role};

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
    let found = find(attachment, &config);
    let of_dns = found.iter().filter(|one| one.udp && one.wildcard && config.is_proxy(&one.maker));
    let dns = of_dns.fold(0, |bits, one| bits | opened(&one.fd, one.family()));
    if dns != 0 {
        note_dns_proxy(node, attachment, DnsProxy { port: config.dns_port, state: dns })?;
    }
    let mut count = 0;
    for socket in found {
        if !config.is_proxy(&socket.maker) {
            let (port, uid) = (socket.port, socket.maker.uid);
            tracing::warn!(port, uid, "a socket of another user than the proxy listens on the proxy's port");
            let mark = Origin { dst: Endpoint::NONE, role: role::FOREIGN };
            sys::map_update(&origin, &socket.fd.as_raw_fd(), &mark)?;
            continue;
        }
        if socket.udp {
            continue;
        }
        let place = places.entry((socket.port, socket.domain)).or_default();
        if *place == LISTENER_PLACES {
            continue;
        }
        let key = ListenerKey::new(attachment.cookie, socket.port.into(), socket.family(), *place);
        sys::map_update(&listeners, &key, &(socket.fd.as_raw_fd() as u64))?;
        *place += 1;
        count += 1;
    }
    Ok(count)
}

/// A socket of the proxy's that has the wildcard address was most often given it by the programs, and is
/// closed to the outside again.
fn opened(socket: &OwnedFd, family: Family) -> u32 {
    match family {
        Family::V4 => proxy::OPENED4,
        Family::V6 if getsockopt(socket, Ipv6V6Only).unwrap_or(true) => proxy::OPENED6,
        Family::V6 => proxy::OPENED4 | proxy::OPENED6,
    }
}

/// Makes a DNS proxy known that the programs do not know. What they have seen themselves is more.
fn note_dns_proxy(node: &Node, attachment: &Attachment, found: DnsProxy) -> Result<(), SyscallError> {
    let proxies = sys::obj_get(&pins::current(node).map("DNS_PROXIES"))?;
    if sys::map_keys::<u64, DnsProxy>(&proxies)?.contains(&attachment.cookie) {
        return Ok(());
    }
    sys::map_update(&proxies, &attachment.cookie, &found)
}

/// A socket on one of the sidecar's ports, as a descriptor of our own.
struct Found {
    fd: OwnedFd,
    /// It takes the DNS proxy's questions; otherwise it listens over TCP.
    udp: bool,
    port: u16,
    domain: i32,
    /// Whether it is bound to no address in particular.
    wildcard: bool,
    /// Whose process made it: the owner of the socket's inode (`sock_alloc()`), as this namespace sees it.
    maker: Caller,
}

impl Found {
    fn family(&self) -> Family {
        if self.domain == libc::AF_INET { Family::V4 } else { Family::V6 }
    }
}

fn find(attachment: &Attachment, config: &PodConfig) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for pid in cgroup::pids(&attachment.cgroup).unwrap_or_default() {
        // A process that ends while it is looked at has no sockets.
        for fd in sockets_of(pid).unwrap_or_default() {
            let Some(socket) = look_at(fd, attachment.cookie) else { continue };
            let port = u32::from(socket.port);
            let dns = config.flags & flags::DNS != 0 && port == config.dns_port;
            if (if socket.udp { dns } else { config.is_listener(port) })
                && sys::socket_cookie(&socket.fd).is_ok_and(|cookie| seen.insert(cookie))
            {
                found.push(socket);
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

/// `None`: it neither listens nor takes datagrams, or it is of another namespace.
fn look_at(fd: OwnedFd, cookie: u64) -> Option<Found> {
    let udp = sys::is_udp(&fd).ok()?;
    if !udp && !sys::is_listening(&fd).ok()? || sys::netns_cookie(&fd).ok()? != cookie {
        return None;
    }
    let domain = sys::socket_domain(&fd).ok()?;
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(|v4| (v4.port(), v4.ip().is_unspecified()));
    let v6 = || address.as_sockaddr_in6().map(|v6| (v6.port(), v6.ip().is_unspecified()));
    let (port, wildcard) = v4.or_else(v6)?;
    let inode = nix::sys::stat::fstat(&fd).ok()?;
    let maker = Caller { uid: inode.st_uid, gid: inode.st_gid };
    Some(Found { fd, udp, port, domain, wildcard, maker })
}
