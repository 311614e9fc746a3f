//! The pod's network namespace: who it is, which addresses it has, and what attach changes in it.
//!
//! Changed, and taken back by detach:
//! * `::6/128` on `lo` where the pod has IPv6: the source address of Envoy's connections to the application
//!   (127.0.0.6, its IPv4 counterpart, is local anyway);
//! * `local 127.72.0.0/16 dev lo src <pod IPv4>` and `local fd72:6564:6972::/64 dev lo src <pod IPv6>`: the
//!   addresses at which the application's connections meet the sidecar. The preferred source makes the kernel
//!   choose the pod's address as the client's without a bind, and every destination has a port range of its
//!   own;
//! * `local <pod IPv4> dev lo`, in front of the kernel's own route to that address: see `spread_routes`;
//! * `net.mptcp.enabled=0`: an MPTCP socket's subflows would meet the sidecar without their socket's origin.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily as Af, SockFlag, SockType, socket};
use redirect_common::{PREFIX4, PREFIX6};

use crate::kernel::sys::{self, SyscallError};

/// Why something in the namespace failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {path}: {source}")]
    Enter { path: PathBuf, source: io::Error },
    /// The namespace's cookie cannot be read.
    #[error("cannot identify the network namespace {path}: {source}; Linux 5.14 or newer is needed")]
    Cookie { path: PathBuf, source: SyscallError },
    /// A request to the kernel's routing tables failed.
    #[error("cannot {what} in the network namespace {path}: {source}")]
    Netlink { what: String, path: PathBuf, source: io::Error },
}

/// A pod's network namespace, entered once: sockets and settings that were opened inside keep belonging to
/// it.
pub struct Netns {
    path: PathBuf,
    file: File,
    cookie: u64,
    netlink: Socket,
    sequence: u32,
    mptcp: Option<File>,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface.
    pub interface: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether it can be a source towards other hosts (neither loopback nor link-local).
    pub global: bool,
}

/// A link of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl Netns {
    /// Opens the namespace at a path such as `/run/netns/...` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// It cannot be entered, or does not tell its cookie.
    pub fn open(path: &Path) -> Result<Netns, Error> {
        let enter = |source| Error::Enter { path: path.into(), source };
        let file = File::open(path).map_err(enter)?;
        let (probe, netlink, mptcp) = inside(&file, || -> io::Result<(OwnedFd, Socket, Option<File>)> {
            let probe = socket(Af::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            Ok((probe, Socket::new(NETLINK_ROUTE)?, open_setting(MPTCP)?))
        })
        .and_then(|opened| opened)
        .map_err(enter)?;
        let cookie =
            sys::netns_cookie(&probe).map_err(|source| Error::Cookie { path: path.into(), source })?;
        Ok(Netns { path: path.into(), file, cookie, netlink, sequence: 0, mptcp })
    }

    /// Its cookie, never reused within a boot.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The open namespace, to link a program to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(request, "list addresses")?;
        Ok(answers.into_iter().filter_map(|answer| address_of(&answer)).collect())
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(request, "list interfaces")?;
        Ok(answers.into_iter().filter_map(|answer| interface_of(&answer)).collect())
    }

    /// Destinations that the main table routes through an interface, the default route left out.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn subnets_behind(&mut self, interface: u32) -> Result<Vec<IpNet>, Error> {
        let mut subnets = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message), "list routes")?;
            subnets.extend(answers.into_iter().filter_map(|answer| subnet_of(&answer, interface)));
        }
        Ok(subnets)
    }

    /// Adds `::6/128` to `lo`; `false` when it was there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_passthrough6(&mut self) -> Result<bool, Error> {
        let request = RouteNetlinkMessage::NewAddress(passthrough6());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, "add ::6/128 to lo")
    }

    /// Takes `::6/128` off `lo`; `false` when it was not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_passthrough6(&mut self) -> Result<bool, Error> {
        self.change(RouteNetlinkMessage::DelAddress(passthrough6()), 0, "remove ::6/128 from lo")
    }

    /// Adds the local routes over which the sidecar is dialled, with `source` as the client's address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_spread_routes(&mut self, source: IpAddr) -> Result<(), Error> {
        for route in spread_routes(source) {
            // Without NLM_F_EXCL the own address's route goes in front of the kernel's.
            self.change(
                RouteNetlinkMessage::NewRoute(route),
                NLM_F_CREATE,
                "add the local route to the sidecar",
            )?;
        }
        Ok(())
    }

    /// Removes those routes; fine when they are not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_spread_routes(&mut self, source: IpAddr) -> Result<(), Error> {
        for route in spread_routes(source) {
            self.change(RouteNetlinkMessage::DelRoute(route), 0, "remove the local route to the sidecar")?;
        }
        Ok(())
    }

    /// Whether sockets of the namespace may use MPTCP; `false` also where the kernel does not know it.
    ///
    /// # Errors
    /// The setting cannot be read.
    pub fn mptcp(&self) -> Result<bool, Error> {
        let Some(mut setting) = self.mptcp.as_ref() else { return Ok(false) };
        let mut text = String::new();
        setting
            .seek(SeekFrom::Start(0))
            .and_then(|_| setting.read_to_string(&mut text))
            .map_err(|source| self.failed("read whether MPTCP is on", source))?;
        Ok(text.trim() == "1")
    }

    /// Allows or forbids MPTCP in the namespace.
    ///
    /// # Errors
    /// The setting cannot be written.
    pub fn set_mptcp(&self, allowed: bool) -> Result<(), Error> {
        let Some(mut setting) = self.mptcp.as_ref() else { return Ok(()) };
        let value: &[u8] = if allowed { b"1" } else { b"0" };
        setting
            .seek(SeekFrom::Start(0))
            .and_then(|_| setting.write_all(value))
            .map_err(|source| self.failed("switch MPTCP off or on", source))
    }

    fn dump(&mut self, request: RouteNetlinkMessage, what: &str) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(request, NLM_F_DUMP).map_err(|source| self.failed(what, source))
    }

    /// A request that is acknowledged; "exists" and "does not exist" are not errors but `false`.
    fn change(&mut self, request: RouteNetlinkMessage, flags: u16, what: &str) -> Result<bool, Error> {
        match self.exchange(request, NLM_F_ACK | flags) {
            Ok(_) => Ok(true),
            Err(error) if already_so(&error) => Ok(false),
            Err(source) => Err(self.failed(what, source)),
        }
    }

    fn failed(&self, what: &str, source: io::Error) -> Error {
        Error::Netlink { what: what.into(), path: self.path.clone(), source }
    }

    /// Sends one request and reads until the kernel says that it is done.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.netlink.send_to(&buffer, &SocketAddr::new(0, 0), 0)?;
        let mut answers = Vec::new();
        loop {
            let (packet, _) = self.netlink.recv_from_full()?;
            if read_packet(&packet, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Collects the answers in a packet; true when the exchange is over.
fn read_packet(packet: &[u8], sequence: u32, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = packet;
    while rest.len() >= 16 {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
        if length == 0 {
            break;
        }
        rest = &rest[length..];
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => {
                return match error.code {
                    None => Ok(true),
                    Some(_) => Err(error.to_io()),
                };
            }
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
    }
    Ok(false)
}

/// "It exists", "there is no such route", "there is no such address".
fn already_so(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ESRCH | libc::EADDRNOTAVAIL))
}

/// Runs `work` with the calling thread in a network namespace, and brings the thread back. (A thread of its
/// own would cost half a millisecond of every ADD: its stack, and two wake-ups.)
fn inside<T>(netns: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    Ok(result)
}

/// Opens a setting to be read and written; `None` when the kernel does not have it.
fn open_setting(path: &str) -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Where /proc/sys is read-only it can still be known that nothing has to be written.
        Err(_) => File::open(path).map(Some),
    }
}

/// A setting of the network namespace of whoever opens it.
const MPTCP: &str = "/proc/sys/net/mptcp/enabled";

const LOOPBACK: u32 = 1;
/// `RT_TABLE_LOCAL`
const TABLE_LOCAL: u8 = 255;

fn passthrough6() -> AddressMessage {
    let address = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = LOOPBACK;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// The route to the private prefix and, for IPv4, one to the pod's own address: the kernel caches the route
/// of the sidecar's answers only if it leads to `lo` by name (`do_cache` in `__mkroute_output()`), which
/// saves 0.5 us per connection.
fn spread_routes(source: IpAddr) -> Vec<RouteMessage> {
    match source {
        IpAddr::V4(v4) => {
            let prefix = RouteAddress::Inet(Ipv4Addr::from(PREFIX4));
            let own = RouteAddress::Inet(v4);
            vec![local_route(prefix, 16, own.clone()), local_route(own.clone(), 32, own)]
        }
        IpAddr::V6(v6) => {
            let bits = u128::from(PREFIX6[0]) << 96 | u128::from(PREFIX6[1]) << 64;
            vec![local_route(RouteAddress::Inet6(Ipv6Addr::from(bits)), 64, RouteAddress::Inet6(v6))]
        }
    }
}

/// `local <destination>/<length> dev lo src <source>`
fn local_route(destination: RouteAddress, length: u8, source: RouteAddress) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match source {
        RouteAddress::Inet6(_) => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    };
    message.header.destination_prefix_length = length;
    message.header.table = TABLE_LOCAL;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![
        RouteAttribute::Destination(destination),
        RouteAttribute::Oif(LOOPBACK),
        RouteAttribute::PrefSource(source),
    ];
    message
}

fn address_of(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    // For a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL our own; IPv6 has IFA_ADDRESS only.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let global = message.header.index != LOOPBACK && message.header.scope == AddressScope::Universe;
    Some(Address { interface: message.header.index, net, global })
}

fn interface_of(message: &RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(Interface { index: message.header.index, name })
}

fn subnet_of(message: &RouteNetlinkMessage, interface: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let out =
        message.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if *index == interface));
    let main =
        message.header.table == RouteHeader::RT_TABLE_MAIN && message.header.kind == RouteType::Unicast;
    if !out || !main || message.header.destination_prefix_length == 0 {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
            IpNet::new((*ip).into(), message.header.destination_prefix_length).ok()
        }
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
            IpNet::new((*ip).into(), message.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}
