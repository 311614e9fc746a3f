//! Addresses, interfaces and routes that come to a pod while it runs: a netlink socket in each pod's
//! namespace says so, and the attachment is planned again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use redirect_user::attach::record::Attachment;
use redirect_user::attach::replan;
use redirect_user::inspect;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::state::State;

/// Links, addresses and routes of both families (`RTMGRP_*` of `linux/rtnetlink.h`).
const GROUPS: i32 =
    libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV4_ROUTE;
/// An address is announced more than once while it settles.
const SETTLE: Duration = Duration::from_millis(100);

/// The sockets, by the cookie of the namespace that each is in.
#[derive(Debug, Default)]
pub struct Addresses {
    watched: HashMap<u64, AbortHandle>,
    tasks: JoinSet<u64>,
}

impl Addresses {
    /// Watches the namespaces of these attachments, and no others.
    pub fn follow(&mut self, state: &Arc<State>, attachments: &[Attachment]) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(cookie) = ended {
                self.watched.remove(&cookie);
            }
        }
        self.watched.retain(|cookie, task| {
            let there = attachments.iter().any(|attachment| attachment.cookie == *cookie);
            if !there {
                task.abort();
            }
            there
        });
        for attachment in attachments.iter().filter(|attachment| attachment.of_this_boot()) {
            let (cookie, netns) = (attachment.cookie, attachment.netns.clone());
            if !self.watched.contains_key(&cookie) {
                let task = self.tasks.spawn(watch(Arc::clone(state), cookie, netns));
                self.watched.insert(cookie, task);
            }
        }
    }
}

/// Plans again after each change, until the namespace is gone.
async fn watch(state: Arc<State>, cookie: u64, netns: PathBuf) -> u64 {
    let opened = tokio::task::spawn_blocking(move || listen(netns)).await;
    let Ok(Ok(socket)) = opened else { return cookie };
    // SAFETY: an `OwnedFd` keeps its descriptor, and closes it when it is dropped.
    let Ok(socket) = (unsafe { AsyncFd::register(socket) }) else { return cookie };
    loop {
        let node = state.node.clone();
        let done = tokio::task::spawn_blocking(move || plan_again(&node, cookie)).await;
        match done {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return cookie,
            Ok(Err(problem)) => tracing::warn!(cookie, problem, "cannot follow a pod's addresses"),
        }
        let Ok(mut ready) = socket.readable().await else { return cookie };
        sleep(SETTLE).await;
        drain(socket.get_ref());
        ready.clear_ready();
    }
}

/// A socket in another namespace: a thread that enters it makes the socket, and ends.
fn listen(netns: PathBuf) -> io::Result<OwnedFd> {
    let thread = std::thread::spawn(move || {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
        Ok(socket)
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

/// What is said does not matter: the namespace is looked at whole.
fn drain(socket: &OwnedFd) {
    let mut buffer = [0; 8192];
    while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
}

/// False when the attachment is gone.
fn plan_again(node: &Node, cookie: u64) -> Result<bool, String> {
    let lock = NodeLock::acquire(node).map_err(|error| error.to_string())?;
    let attachments = inspect::list(node).map_err(|error| error.to_string())?;
    let Some(attachment) = attachments.iter().find(|attachment| attachment.cookie == cookie) else {
        return Ok(false);
    };
    let coverage = replan::replan(node, &lock, attachment).map_err(|error| error.to_string())?;
    for stale in &coverage.stale {
        tracing::info!(container = attachment.id.container_id, mended = ?stale, "the pod's network has changed");
    }
    Ok(true)
}
