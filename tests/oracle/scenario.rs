//! What is tried: a [`Setup`] of the pod, and [`Connection`]s in it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use harness::{Family, User};
use redirect_user::policy::Policy;

/// How the pod is set up: the policy, where its sidecar listens and with how many workers, and what happens
/// to the pod's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) policy: Policy,
    pub(crate) sidecar: Listens,
    pub(crate) workers: Workers,
    pub(crate) families: Families,
    pub(crate) late: Late,
}

/// Only what is not as in a pod without annotations.
impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |policy: &Policy| serde_json::to_value(policy).expect("a policy is plain data");
        let (own, usual) = (value(&self.policy), value(&Policy::default()));
        write!(f, "sidecar {:?}", self.sidecar)?;
        if self.workers != Workers::One {
            write!(f, ", workers {:?}", self.workers)?;
        }
        if self.families != Families::Both {
            write!(f, ", families {:?}", self.families)?;
        }
        if self.late != Late::Nothing {
            write!(f, ", late {:?}", self.late)?;
        }
        let fields = own.as_object().into_iter().flatten();
        fields
            .filter(|(name, _)| own[*name] != usual[*name])
            .try_for_each(|(name, value)| write!(f, ", {name} {value}"))
    }
}

/// Where the sidecar listens for captured connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Listens {
    /// On 0.0.0.0 and ::, as Envoy does by default.
    #[default]
    Everywhere,
    /// On 127.0.0.1 and ::1.
    OnLocalhost,
    /// On ::, and IPv4 clients come as IPv4-mapped ones.
    DualStack,
    /// On 0.0.0.0 only.
    OnlyV4,
    /// On :: with IPV6_V6ONLY.
    OnlyV6,
    /// Not at all: it has not started yet.
    Nowhere,
}

/// How many workers of the sidecar share its ports (SO_REUSEPORT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Workers {
    #[default]
    One,
    Eight,
    /// Five; then five of a new sidecar, and the old one ends: a hot restart.
    Renewed,
}

/// Which families the pod has addresses of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Families {
    #[default]
    Both,
    OnlyV4,
    OnlyV6,
}

impl Families {
    /// Whether an address is of these.
    pub(crate) fn have(self, ip: IpAddr) -> bool {
        match self {
            Families::Both => true,
            Families::OnlyV4 => ip.is_ipv4(),
            Families::OnlyV6 => ip.is_ipv6(),
        }
    }
}

/// What the pod gets after its sidecar has started: always the same addresses, 10.99.0.2 and fd99::2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Late {
    #[default]
    Nothing,
    /// On its first interface.
    Addresses,
    /// On an interface that was not there before.
    Interface,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// An application in the pod, uid and gid 1000.
    App,
    /// Another one, in group 2000.
    OtherGroup,
    /// The sidecar, uid and gid 1337.
    Proxy,
    /// Only the sidecar's uid.
    ProxyUid,
    /// Only the sidecar's gid.
    ProxyGid,
    /// An application by its real ids, the sidecar by its effective ones.
    EffectiveProxy,
    /// A process in the other pod: the connection arrives from outside.
    Peer,
}

impl Who {
    /// Everybody in the pod whose real and effective ids are the same.
    pub(crate) const IN_POD: [Who; 5] = [Who::App, Who::OtherGroup, Who::Proxy, Who::ProxyUid, Who::ProxyGid];

    /// The real ids.
    pub(crate) fn user(self) -> User {
        let (uid, gid) = match self {
            Who::App | Who::EffectiveProxy | Who::Peer => (1000, 1000),
            Who::OtherGroup => (1000, 2000),
            Who::Proxy => (1337, 1337),
            Who::ProxyUid => (1337, 1000),
            Who::ProxyGid => (1000, 1337),
        };
        User { uid, gid }
    }
}

/// What kind of socket connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    /// MPTCP
    Mptcp,
    /// `connect()`, `send()`
    UdpConnected,
    /// `sendto()`
    UdpUnconnected,
    /// `connect()`, `connect()` with AF_UNSPEC, `sendto()`
    UdpDissolved,
}

impl Kind {
    /// Whether it is a stream.
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Kind::Tcp | Kind::Mptcp)
    }
}

/// One attempt to reach somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) who: Who,
    pub(crate) kind: Kind,
    /// What the socket is bound to first.
    pub(crate) source: Option<IpAddr>,
    /// And to which port; 0 for any.
    pub(crate) port: u16,
    pub(crate) to: SocketAddr,
    /// An IPv4 destination through an IPv6 socket.
    pub(crate) mapped: bool,
    /// The server that a UDP socket asks first, on the same port; its answer comes last.
    pub(crate) first: Option<IpAddr>,
}

impl Connection {
    /// A TCP connection from an unbound socket.
    pub(crate) fn tcp(who: Who, to: &str) -> Connection {
        let to = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
        Connection { who, kind: Kind::Tcp, source: None, port: 0, to, mapped: false, first: None }
    }

    pub(crate) fn of(self, kind: Kind) -> Connection {
        Connection { kind, ..self }
    }

    pub(crate) fn from(self, source: &str) -> Connection {
        Connection { source: Some(source.parse().expect("an address")), ..self }
    }

    /// After another one on the same socket.
    pub(crate) fn after(self, first: &str) -> Connection {
        Connection { first: Some(first.parse().expect("an address")), ..self }
    }

    /// From this port of any address.
    pub(crate) fn on_port(self, port: u16) -> Connection {
        Connection { port, ..self }
    }

    pub(crate) fn mapped(self) -> Connection {
        Connection { mapped: true, ..self }
    }

    /// The family of the socket.
    pub(crate) fn family_of_socket(&self) -> Family {
        if self.mapped { Family::V6 } else { Family::of(&self.to.ip()) }
    }

    /// An address as this connection's socket writes it.
    pub(crate) fn written(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.mapped => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            other => other,
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.who, self.kind)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if self.port != 0 {
            write!(f, " from port {}", self.port)?;
        }
        if let Some(first) = self.first {
            write!(f, " after {first}")?;
        }
        write!(f, " to {}", self.to)?;
        if self.mapped { write!(f, " through an IPv6 socket") } else { Ok(()) }
    }
}
