//! A pod as a kubelet and a CNI plugin leave it: a network namespace with addresses, and a cgroup.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use redirect_common::Family;

use crate::cgroup::Cgroup;
use crate::keep::keep;
use crate::netns::NetNs;
use crate::process::{Capabilities, Process, User};

/// A pod. Its namespace and cgroup go when it goes out of scope.
#[derive(Debug)]
pub struct Pod {
    name: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    // In this order: what runs in the cgroup is killed before the namespace goes.
    cgroup: Cgroup,
    netns: NetNs,
}

impl Pod {
    pub(crate) fn new(name: &str, netns: NetNs, cgroup: Cgroup, ip4: Ipv4Addr, ip6: Ipv6Addr) -> Pod {
        Pod { name: name.to_owned(), ip4, ip6, cgroup, netns }
    }

    /// Its name, which is also the id under which [`crate::Node::attach`] enrols it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// Its address in the family that `family` says.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        if family == Family::V6 { self.ip6.into() } else { self.ip4.into() }
    }

    /// A port at its address in the family that `family` says.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup, the one that a kubelet makes for the whole pod.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The cgroup of one of its containers, made if it is not there.
    #[must_use]
    pub fn container(&self, container: &str) -> PathBuf {
        self.cgroup.child(container)
    }

    /// Starts a process in one of its containers.
    #[must_use]
    pub fn process(&self, container: &str, user: User) -> Process {
        self.process_with(container, user, Capabilities::OfUser)
    }

    /// Starts a process with these capabilities in one of its containers.
    #[must_use]
    pub fn process_with(&self, container: &str, user: User, capabilities: Capabilities) -> Process {
        let name = format!("{}/{container} (uid {}, gid {})", self.name, user.uid, user.gid);
        Process::start_with(&name, &self.netns, &self.container(container), user, capabilities)
    }

    /// Starts an application.
    #[must_use]
    pub fn app(&self) -> Process {
        self.process("app", User::APP)
    }

    /// Starts a process with the sidecar's ids.
    #[must_use]
    pub fn proxy(&self) -> Process {
        self.process("istio-proxy", User::PROXY)
    }

    /// How to get into the pod by hand.
    #[must_use]
    pub fn how_to_enter(&self) -> String {
        format!(
            "pod {}: nsenter --net={} bash; to be in its cgroup: echo $$ > {}/cgroup.procs",
            self.name,
            self.netns.path().display(),
            self.cgroup.path().display()
        )
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() && keep() {
            eprintln!("kept: {}", self.how_to_enter());
            self.netns.keep();
            self.cgroup.keep();
        }
    }
}
