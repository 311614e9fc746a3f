//! The scratch pod's network: a namespace for the pod, one for the rest of the world, and a pair of virtual
//! interfaces between them. The namespaces have no names; they end with the last process or descriptor.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};
use redirect_common::addr::Family;

use crate::pod::netns::{self, Ipv6, Netns};

/// The pod's interface.
pub(super) const IFNAME: &str = "eth0";

/// An address of both families.
#[derive(Clone, Copy, Debug)]
pub(super) struct Both {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Both {
    /// One of them.
    pub(super) const fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }
}

const fn both(v4: [u8; 4], net: u16) -> Both {
    let v6 = Ipv6Addr::new(0x2001, 2, 0, net, 0, 0, 0, v4[3] as u16);
    Both { v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]), v6 }
}

/// The pod. 198.18.0.0/15 (RFC 2544) and 2001:2::/48 (RFC 5180) are for benchmarks; no pod has them.
pub(super) const POD: Both = both([198, 18, 0, 2], 0);
/// The rest of the world.
pub(super) const WORLD: Both = both([198, 18, 0, 1], 0);
/// The rest of the world in a range that the policy excludes.
pub(super) const EXCLUDED: Both = both([198, 19, 0, 1], 1);
/// That range, as the policy says it.
pub(super) const EXCLUDED_RANGES: [&str; 2] = ["198.19.0.0/24", "2001:2:0:1::/64"];

/// The families of a pod with IPv6, or without.
pub(super) fn families(with_ipv6: bool) -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(move |family| with_ipv6 || *family == Family::V4)
}

/// Both namespaces, joined.
pub(super) struct Wire {
    /// The pod's.
    pub(super) pod: File,
    /// The rest of the world's.
    pub(super) world: File,
    /// Whether the pod has IPv6.
    pub(super) ipv6: bool,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be made.
    #[error("cannot make a network namespace: {0}; run this as root (it needs CAP_SYS_ADMIN)")]
    Unshare(io::Error),
    /// The kernel refused a step.
    #[error(transparent)]
    Netns(#[from] netns::Error),
}

impl Wire {
    /// Makes them.
    pub(super) fn make() -> Result<Wire, Error> {
        let (pod, world) = (new_netns().map_err(Error::Unshare)?, new_netns().map_err(Error::Unshare)?);
        let (mut inside, mut outside) = (open(&pod)?, open(&world)?);
        inside.change(
            RouteNetlinkMessage::NewLink(pair(&world)),
            NLM_F_CREATE | NLM_F_EXCL,
            "make a pair of virtual interfaces",
        )?;
        let mut ipv6 = true;
        for (netns, own) in [(&mut inside, POD), (&mut outside, WORLD)] {
            let index = raise(netns)?;
            add_address(netns, index, own.of(Family::V4), 24)?;
            // A namespace has the settings of the node, or the kernel's own.
            ipv6 &= Netns::open(&path(if own.v4 == POD.v4 { &pod } else { &world }))?.settings()?.ipv6
                == Ipv6::On;
            if ipv6 {
                add_address(netns, index, own.of(Family::V6), 64)?;
            }
        }
        for family in families(ipv6) {
            let bits = if family == Family::V6 { 128 } else { 32 };
            add_address(&mut outside, LOOPBACK, EXCLUDED.of(family), bits)?;
            let route = RouteNetlinkMessage::NewRoute(default_route(WORLD.of(family)));
            inside.change(route, NLM_F_CREATE | NLM_F_EXCL, "add a default route")?;
        }
        Ok(Wire { pod, world, ipv6 })
    }
}

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// A new namespace, made by a thread of its own: the caller stays where it is.
fn new_netns() -> io::Result<File> {
    let made = std::thread::spawn(|| -> io::Result<File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

/// Where an open namespace can be opened again.
pub(super) fn path(netns: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into()
}

fn open(netns: &File) -> Result<Netns, netns::Error> {
    Netns::open(&path(netns))
}

/// `ip link add eth0 type veth peer name eth0 netns <world>`
fn pair(world: &File) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes =
        vec![LinkAttribute::IfName(IFNAME.to_owned()), LinkAttribute::NetNsFd(world.as_raw_fd())];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(IFNAME.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message
}

/// Brings `lo` and the interface up; the index of the latter.
fn raise(netns: &mut Netns) -> Result<u32, netns::Error> {
    let interfaces = netns.interfaces()?;
    let index = interfaces.iter().find(|one| one.name == IFNAME).map_or(0, |one| one.index);
    for index in [LOOPBACK, index] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        netns.change(RouteNetlinkMessage::SetLink(message), 0, "bring an interface up")?;
    }
    Ok(index)
}

fn add_address(netns: &mut Netns, index: u32, ip: IpAddr, bits: u8) -> Result<(), netns::Error> {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = bits;
    message.header.index = index;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    netns.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, "add an address")?;
    Ok(())
}

fn default_route(gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway))];
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}
