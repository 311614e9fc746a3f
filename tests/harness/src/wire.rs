//! A wire: a bridge in a namespace of its own, to which pods are joined by veth pairs.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::pod::Pod;

/// A bridge with the addresses 10.77.0.1/16 and fd77::1/64, which are also the pods' gateway.
#[derive(Debug)]
pub struct Wire {
    name: String,
    netns: NetNs,
    namespaces: PathBuf,
    cgroups: PathBuf,
    pods: Cell<u16>,
}

impl Wire {
    pub(crate) fn new(name: &str, namespaces: PathBuf, cgroups: PathBuf) -> Wire {
        let netns = NetNs::create(namespaces.join(name));
        netns.ip("link add br0 type bridge\n\
             addr add 10.77.0.1/16 dev br0\n\
             addr add fd77::1/64 dev br0 nodad\n\
             link set br0 up");
        Wire { name: name.to_owned(), netns, namespaces, cgroups, pods: Cell::new(0) }
    }

    /// The next pod on the wire: 10.77.0.2 and fd77::2, then 10.77.0.3 and so on.
    #[must_use]
    pub fn pod(&self, name: &str) -> Pod {
        let number = self.pods.get() + 2;
        self.pods.set(number - 1);
        let ip4 = Ipv4Addr::from(0x0a4d_0000 | u32::from(number));
        let ip6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number);
        let netns = NetNs::create(self.namespaces.join(format!("{}-{name}", self.name)));
        self.join(&netns, number, ip4, ip6);
        // A uid in the form that a kubelet gives, unique in the process.
        static PODS: AtomicU32 = AtomicU32::new(1);
        let uid = format!("{:08x}-0000-4000-8000-000000000000", PODS.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::create(self.cgroups.join(format!("pod{uid}")));
        Pod::new(name, netns, cgroup, ip4, ip6)
    }

    /// The namespace with the bridge: what a pod's node would be.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    fn join(&self, netns: &NetNs, number: u16, ip4: Ipv4Addr, ip6: Ipv6Addr) {
        // One end is made where it is needed, the other moved: the machine's own namespace never sees either.
        let port = format!("veth{number}");
        netns.ip(&format!(
            "link add eth0 type veth peer name {port}\nlink set {port} netns {}",
            self.netns.path().display()
        ));
        self.netns.ip(&format!("link set {port} master br0 up"));
        netns.ip(&format!(
            "addr add {ip4}/16 dev eth0\n\
             addr add {ip6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.77.0.1\n\
             route add ::/0 via fd77::1"
        ));
    }
}
