//! The pod's network namespace: who it is, which addresses and routes it has, and what attach changes in it.
//!
//! Changed, and taken back by detach:
//! * `::6/128` on `lo` where the pod has IPv6 on, an address or not: the source address of Envoy's
//!   connections to the application (127.0.0.6, its IPv4 counterpart, is local anyway);
//! * `local 127.64.0.0/10 dev lo src <pod IPv4>` and `local fd72:6564:6972::/64 dev lo src <pod IPv6>`: the
//!   addresses at which the application's connections meet the sidecar. The preferred source makes the kernel
//!   choose the pod's address as the client's without a bind, and every destination has a port range of its
//!   own;
//! * `local <pod IPv4> dev lo`, in front of the kernel's own route to that address: see
//!   `messages::local_routes`;
//! * where DNS is captured, what `dns` says.

mod channel;
mod destroy;
mod dns;
mod messages;
mod objects;
mod settings;
mod tcp;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily as Af, SockFlag, SockType, socket};
use redirect_common::in_prefix6;

use self::channel::Channel;
pub use self::dns::DnsChanges;
pub use self::objects::{Address, Interface, LocalRoute};
pub use self::settings::{Ipv6, Settings};
pub use self::tcp::TcpSocket;
use crate::kernel::sys::{self, SyscallError};
use crate::pod::routes::{PolicyRule, Route};

/// Why something in the namespace failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {path}: {source}{hint}", hint = root_hint(source))]
    Enter { path: PathBuf, source: io::Error },
    /// The namespace's cookie cannot be read.
    #[error("cannot identify the network namespace {path}: {source}; Linux 6.1 or newer is needed")]
    Cookie { path: PathBuf, source: SyscallError },
    /// A request to the kernel's routing tables failed.
    #[error("cannot {what} in the network namespace {path}: {source}{hint}", hint = admin_hint(source))]
    Netlink { what: String, path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether the namespace is there, and the kernel does not let us in, or change anything.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Error::Enter { source, .. } | Error::Netlink { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// What is missing when the kernel does not let us in.
fn root_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "; run this as root (it needs CAP_SYS_ADMIN)",
        _ => "",
    }
}

/// What is missing when the kernel does not let us change it.
fn admin_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (CAP_NET_ADMIN is needed)",
        _ => "",
    }
}

/// A pod's network namespace, entered once: sockets that were opened inside keep belonging to it.
pub struct Netns {
    path: PathBuf,
    file: File,
    cookie: u64,
    channel: Channel,
}

impl Netns {
    /// Opens the namespace at a path such as `/run/netns/...` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// It cannot be entered, or does not tell its cookie.
    pub fn open(path: &Path) -> Result<Netns, Error> {
        let enter = |source| Error::Enter { path: path.into(), source };
        let file = File::open(path).map_err(enter)?;
        let (probe, channel) = inside(&file, || -> io::Result<(OwnedFd, Channel)> {
            let probe = socket(Af::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            Ok((probe, Channel::open()?))
        })
        .and_then(|opened| opened)
        .map_err(enter)?;
        let cookie =
            sys::netns_cookie(&probe).map_err(|source| Error::Cookie { path: path.into(), source })?;
        Ok(Netns { path: path.into(), file, cookie, channel })
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

    /// What /proc says about it now.
    ///
    /// # Errors
    /// A file below `/proc/sys/net` cannot be read.
    pub fn settings(&self) -> Result<Settings, Error> {
        let settings = inside(&self.file, Settings::read).and_then(|settings| settings);
        settings.map_err(|source| self.failed("read the settings", source))
    }

    /// All addresses of all interfaces, but `::6` and those of DNS servers.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let ours = |address: &Address| is_passthrough6(address) || in_prefix6(&address.net.addr().into());
        Ok(self.all_addresses()?.into_iter().filter(|address| !ours(address)).collect())
    }

    /// Whether `::6` is there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn has_passthrough6(&mut self) -> Result<bool, Error> {
        Ok(self.all_addresses()?.iter().any(is_passthrough6))
    }

    fn all_addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(request, "list addresses")?;
        Ok(answers.iter().filter_map(messages::address_of).collect())
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(request, "list interfaces")?;
        Ok(answers.iter().filter_map(messages::interface_of).collect())
    }

    /// The names of its bridges.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn bridges(&mut self) -> Result<Vec<String>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(request, "list interfaces")?;
        let bridges = answers.iter().filter(|answer| messages::is_bridge(answer));
        Ok(bridges.filter_map(messages::interface_of).map(|interface| interface.name).collect())
    }

    /// All routes of all tables.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            routes.extend(self.route_messages(family)?.iter().filter_map(messages::route_of));
        }
        Ok(routes)
    }

    fn route_messages(&mut self, family: AddressFamily) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        self.dump(RouteNetlinkMessage::GetRoute(message), "list routes")
    }

    /// All policy rules of both families.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn rules(&mut self) -> Result<Vec<PolicyRule>, Error> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answers = match self.channel.dump(RouteNetlinkMessage::GetRule(message)) {
                // A kernel without policy routing has no rules.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
                answers => answers.map_err(|source| self.failed("list policy rules", source))?,
            };
            rules.extend(answers.iter().filter_map(messages::rule_of));
        }
        Ok(rules)
    }

    /// Adds `::6/128` to `lo`; `false` when it was there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_passthrough6(&mut self) -> Result<bool, Error> {
        let request = RouteNetlinkMessage::NewAddress(messages::passthrough6());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, "add ::6/128 to lo")
    }

    /// Takes `::6/128` off `lo`; `false` when it was not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_passthrough6(&mut self) -> Result<bool, Error> {
        self.change(RouteNetlinkMessage::DelAddress(messages::passthrough6()), 0, "remove ::6/128 from lo")
    }

    /// Whether the local routes over which the sidecar is dialled are there as they should be.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn has_local_route(&mut self, route: &LocalRoute) -> Result<bool, Error> {
        let wanted = messages::local_routes(route);
        let Some(first) = wanted.first() else { return Ok(true) };
        let answers = self.route_messages(first.header.address_family)?;
        let there = |wanted: &RouteMessage| answers.iter().any(|answer| messages::is_route(answer, wanted));
        Ok(wanted.iter().all(there))
    }

    /// Adds the local routes over which the sidecar is dialled, with the route's source as the client's
    /// address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_local_route(&mut self, route: &LocalRoute) -> Result<(), Error> {
        for message in messages::local_routes(route) {
            // Without NLM_F_EXCL the own address's route goes in front of the kernel's.
            self.change(
                RouteNetlinkMessage::NewRoute(message),
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
    pub fn remove_local_route(&mut self, route: &LocalRoute) -> Result<(), Error> {
        for message in messages::local_routes(route) {
            self.change(RouteNetlinkMessage::DelRoute(message), 0, "remove the local route to the sidecar")?;
        }
        Ok(())
    }

    /// The TCP sockets of the namespace.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn tcp_sockets(&self) -> Result<Vec<TcpSocket>, Error> {
        let sockets = inside(&self.file, tcp::sockets).and_then(|sockets| sockets);
        sockets.map_err(|source| self.failed("list TCP sockets", source))
    }

    /// Ends TCP connections: both ends get a reset. How many there still were.
    ///
    /// # Errors
    /// EOPNOTSUPP from a kernel without `CONFIG_INET_DIAG_DESTROY`.
    pub fn end_tcp(&self, sockets: &[TcpSocket]) -> Result<usize, Error> {
        let ended = inside(&self.file, || destroy::destroy(sockets)).and_then(|ended| ended);
        ended.map_err(|source| self.failed("reset TCP connections", source))
    }

    /// Several requests in one message to the kernel; an answer for each.
    pub(super) fn talk(
        &mut self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<io::Result<Vec<RouteNetlinkMessage>>>> {
        self.channel.talk(requests)
    }

    pub(super) fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.channel.dump(request).map_err(|source| self.failed(what, source))
    }

    /// A request that is acknowledged; `false` for "exists" and "does not exist".
    pub(crate) fn change(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        what: &str,
    ) -> Result<bool, Error> {
        self.channel.change(request, flags).map_err(|source| self.failed(what, source))
    }

    pub(super) fn failed(&self, what: &str, source: io::Error) -> Error {
        // The kernel's own words, "Permission denied" and "Network is down", do not say what to do.
        let hint = match source.raw_os_error() {
            Some(libc::EACCES) => " (IPv6 is off there: net.ipv6.conf.lo.disable_ipv6 must be 0)",
            Some(libc::ENETDOWN) => " (an interface is down: lo must be up before this plugin is called)",
            _ => "",
        };
        Error::Netlink { what: format!("{what}{hint}"), path: self.path.clone(), source }
    }
}

fn is_passthrough6(address: &Address) -> bool {
    address.net.addr() == IpAddr::V6(messages::PASSTHROUGH6)
}

/// Runs `work` with the calling thread in a network namespace, and brings the thread back. (A thread of its
/// own would cost half a millisecond of every ADD: its stack, and two wake-ups.)
pub(crate) fn inside<T>(netns: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    Ok(result)
}
