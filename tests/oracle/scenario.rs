//! What is tried: a [`Setup`] of the pod, and [`Connection`]s in it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use harness::User;
use redirect_user::policy::Policy;

/// How the pod is set up: the policy, and where its sidecar listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) policy: Policy,
    pub(crate) sidecar: Listens,
}

/// Only what is not as in a pod without annotations.
impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |policy: &Policy| serde_json::to_value(policy).expect("a policy is plain data");
        let (own, usual) = (value(&self.policy), value(&Policy::default()));
        write!(f, "sidecar {:?}", self.sidecar)?;
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
    /// Not at all: it has not started yet.
    Nowhere,
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
    /// A process in the other pod: the connection arrives from outside.
    Peer,
}

impl Who {
    /// Everybody in the pod.
    pub(crate) const IN_POD: [Who; 5] = [Who::App, Who::OtherGroup, Who::Proxy, Who::ProxyUid, Who::ProxyGid];

    pub(crate) fn user(self) -> User {
        let (uid, gid) = match self {
            Who::App | Who::Peer => (1000, 1000),
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
    /// `connect()`, `send()`
    UdpConnected,
    /// `sendto()`
    UdpUnconnected,
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
}

impl Connection {
    /// A TCP connection from an unbound socket.
    pub(crate) fn tcp(who: Who, to: &str) -> Connection {
        let to = to.parse().unwrap_or_else(|error| panic!("{to}: {error}"));
        Connection { who, kind: Kind::Tcp, source: None, port: 0, to, mapped: false }
    }

    pub(crate) fn of(self, kind: Kind) -> Connection {
        Connection { kind, ..self }
    }

    pub(crate) fn from(self, source: &str) -> Connection {
        Connection { source: Some(source.parse().expect("an address")), ..self }
    }

    /// From this port of any address.
    pub(crate) fn on_port(self, port: u16) -> Connection {
        Connection { port, ..self }
    }

    pub(crate) fn mapped(self) -> Connection {
        Connection { mapped: true, ..self }
    }

    /// Whether the socket is an IPv6 one.
    pub(crate) fn v6_socket(&self) -> bool {
        self.to.is_ipv6() || self.mapped
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
        write!(f, " to {}", self.to)?;
        if self.mapped { write!(f, " through an IPv6 socket") } else { Ok(()) }
    }
}
