//! Differences from iptables that are meant: the one table, which the documentation repeats with reasons.
//!
//! A difference that is not in it fails the test, and so does an entry that the fixed scenarios never meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use harness::Errno;
use ipnet::IpNet;
use redirect_user::policy::InterceptionMode;

use crate::outcome::{Field, Outcome, Reached, Server};
use crate::scenario::{Connection, Families, Kind, Listens, Setup, Who};

/// The pod's addresses on its two interfaces, and on one that comes later.
const ETH0: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 77, 0, 2), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
const ETH1: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 88, 0, 2), Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 2));
const ETH2: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 99, 0, 2), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2));

/// One meant difference.
pub(crate) struct Difference {
    /// Its name in the documentation.
    pub(crate) id: &'static str,
    /// Where it shows.
    pub(crate) fields: &'static [Field],
    /// Exactly when.
    pub(crate) holds: fn(&Case<'_>) -> bool,
}

/// What a difference is judged by.
pub(crate) struct Case<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) connection: &'a Connection,
    pub(crate) iptables: &'a Outcome,
    pub(crate) ours: &'a Outcome,
}

impl Case<'_> {
    /// What was seen in both worlds, where somebody got the connection in both.
    fn reached(&self) -> Option<(&Reached, &Reached)> {
        match (self.iptables, self.ours) {
            (Outcome::Reached(iptables), Outcome::Reached(ours)) => Some((iptables, ours)),
            _ => None,
        }
    }

    /// How iptables ends a connection from outside for whose port there is no sidecar.
    fn nobody_listens(&self) -> Outcome {
        match self.setup.policy.interception_mode {
            InterceptionMode::Redirect => Outcome::Failed(Errno::ECONNREFUSED),
            InterceptionMode::Tproxy => Outcome::Silence,
        }
    }

    /// Whether the connection was taken to the sidecar or the DNS proxy in the pod of ours.
    fn redirected(&self) -> bool {
        let Outcome::Reached(ours) = self.ours else { return false };
        match ours.server {
            Server::DnsProxy => true,
            Server::Sidecar(_) => ours.original_dst.as_ref().is_some_and(Result::is_ok),
            Server::Pod(_) | Server::Peer(_) => false,
        }
    }
}

/// All of them.
pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference {
        id: "accepted-address",
        fields: &[Field::Local],
        holds: |case| {
            // TPROXY keeps the address of a self-call, as of what comes from outside.
            let kept = case.setup.policy.interception_mode == InterceptionMode::Tproxy
                && case.connection.who != Who::Peer;
            case.redirected()
                && case.reached().is_some_and(|(iptables, ours)| {
                    iptables.local != Some(case.connection.to)
                        || kept && ours.server == Server::Sidecar(15006)
                })
        },
    },
    Difference {
        id: "direct-original-dst",
        fields: &[Field::OriginalDst],
        holds: |case| {
            case.reached().is_some_and(|(iptables, ours)| {
                // The sidecar gets an answer, but on localhost, where a lost detour would look the same.
                let loopback = redirect_common::Ip::from(case.connection.to.ip()).is_loopback();
                let told = matches!(ours.server, Server::Sidecar(_)) && !loopback;
                ours.server != Server::DnsProxy
                    && !told
                    && iptables.original_dst == Some(Ok(case.connection.to))
                    && iptables.local == Some(case.connection.to)
                    && ours.original_dst == Some(Err(Errno::ENOENT))
            })
        },
    },
    Difference {
        id: "inbound-to-localhost-sidecar",
        fields: &[Field::Ending],
        holds: |case| {
            // In TPROXY mode a self-call keeps its address, and comes to the same end.
            let keeps_address = case.connection.who == Who::Peer
                || case.setup.policy.interception_mode == InterceptionMode::Tproxy;
            keeps_address
                && case.setup.sidecar == Listens::OnLocalhost
                && *case.iptables == case.nobody_listens()
                && matches!(case.ours, Outcome::Reached(Reached { server: Server::Sidecar(15006), .. }))
        },
    },
    Difference {
        id: "localhost6-server",
        fields: &[Field::Ending],
        holds: |case| {
            case.setup.families == Families::OnlyV4
                && case.connection.to == SocketAddr::from((Ipv6Addr::LOCALHOST, 53))
                && !case.connection.kind.is_tcp()
                && matches!(case.iptables, Outcome::Reached(Reached { server: Server::DnsProxy, .. }))
                && *case.ours == Outcome::Failed(Errno::ENETUNREACH)
        },
    },
    Difference {
        id: "loopback-source",
        fields: &[Field::Ending],
        holds: |case| {
            let connection = case.connection;
            *case.iptables == Outcome::Failed(Errno::EINVAL)
                && connection.source.is_some_and(|source| source.is_ipv4() && source.is_loopback())
                && match case.ours {
                    Outcome::Reached(ours) => {
                        // Who was asked first may be remote, and who is asked then on localhost.
                        matches!(ours.server, Server::Sidecar(15001) | Server::DnsProxy)
                            || connection.first.is_some()
                    }
                    ours => *ours == Outcome::Failed(Errno::ECONNREFUSED),
                }
        },
    },
    Difference {
        id: "in-the-prefix",
        fields: &[Field::Ending, Field::Client, Field::Own, Field::Local, Field::OriginalDst],
        holds: |case| {
            let to = case.connection.to;
            let listener = Server::Sidecar(to.port());
            redirect_common::in_prefix(&to.ip().into())
                && match (case.iptables, case.ours) {
                    (Outcome::Reached(iptables), Outcome::Reached(ours)) => iptables.server == ours.server,
                    // The sidecar listens on localhost.
                    (Outcome::Failed(Errno::ECONNREFUSED), Outcome::Reached(ours)) => ours.server == listener,
                    _ => false,
                }
        },
    },
    Difference {
        id: "nat-port",
        fields: &[Field::Client],
        holds: |case| {
            case.reached().is_some_and(|(iptables, ours)| {
                !iptables.port_kept && ours.port_kept && iptables.client == ours.client
            })
        },
    },
    Difference {
        id: "mptcp-peername",
        fields: &[Field::PeerName],
        holds: |case| {
            let to = redirect_common::Ip::from(case.connection.to.ip());
            case.connection.kind == Kind::Mptcp && to.is_loopback() && case.redirected()
        },
    },
    Difference {
        id: "other-interface",
        fields: &[Field::Client, Field::Own],
        holds: |case| {
            case.connection.source.is_none()
                && case.redirected()
                && case.reached().is_some_and(|(iptables, ours)| {
                    [IpAddr::from(ETH1.0), ETH1.1.into(), ETH2.0.into(), ETH2.1.into()]
                        .contains(&iptables.client)
                        && [IpAddr::from(ETH0.0), ETH0.1.into()].contains(&ours.client)
                        && ours.port_kept
                })
        },
    },
    Difference {
        id: "real-ids",
        fields: &[Field::Server],
        holds: |case| {
            case.connection.who == Who::EffectiveProxy
                && case.reached().is_some_and(|(iptables, ours)| {
                    matches!(iptables.server, Server::Peer(_)) && ours.server == Server::Sidecar(15001)
                })
        },
    },
    Difference {
        id: "tproxy-no-listener",
        fields: &[Field::Ending],
        holds: |case| {
            case.setup.policy.interception_mode == InterceptionMode::Tproxy
                && *case.iptables == Outcome::Silence
                && *case.ours == Outcome::Failed(Errno::ECONNREFUSED)
        },
    },
    Difference {
        id: "unreachable-route",
        fields: &[Field::Ending],
        holds: |case| {
            matches!(case.iptables, Outcome::Failed(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES))
                && match case.ours {
                    Outcome::Reached(ours) => {
                        matches!(ours.server, Server::Sidecar(15001) | Server::DnsProxy)
                            && nowhere(case.connection.to.ip())
                    }
                    // There is no sidecar to fail, or the pod has no address of the family.
                    Outcome::Failed(errno) => {
                        matches!(errno, Errno::ECONNREFUSED | Errno::ENETUNREACH)
                            && nowhere(case.connection.to.ip())
                    }
                    Outcome::Silence => false,
                }
        },
    },
];

/// Further ones, which need a sidecar that goes on to the application; `tproxy.rs` meets them.
pub(crate) const BEHIND_THE_SIDECAR: &[&str] = &["tproxy-sockname"];
/// Whether an address has a route of type unreachable in the pods, see [`crate::world`].
fn nowhere(ip: IpAddr) -> bool {
    let nets: [IpNet; 2] = ["203.0.113.64/28", "2001:db8:f::/48"].map(|net| net.parse().expect("a network"));
    nets.iter().any(|net| net.contains(&ip))
}

/// The differences that explain each differing field, or the field that none explains.
pub(crate) fn explain(case: &Case<'_>) -> Result<Vec<&'static str>, Field> {
    let explain = |field: Field| {
        let entry = DIFFERENCES.iter().find(|entry| entry.fields.contains(&field) && (entry.holds)(case));
        entry.map(|entry| entry.id).ok_or(field)
    };
    crate::outcome::differing(case.iptables, case.ours).into_iter().map(explain).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::{BEHIND_THE_SIDECAR, DIFFERENCES};

    const HEADING: &str = "## Differences from iptables";

    /// The first column of the table in ARCHITECTURE.md.
    fn documented() -> BTreeSet<String> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
        let text =
            std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
        let (_, table) = text.split_once(HEADING).expect("the heading of the table");
        let section = table.split("\n## ").next().unwrap_or(table);
        let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let ids = DIFFERENCES.iter().map(|entry| entry.id).chain(BEHIND_THE_SIDECAR.iter().copied());
        assert_eq!(documented(), ids.map(str::to_owned).collect());
    }
}
