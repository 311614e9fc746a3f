//! One of the two worlds: a pod, another pod beside it, everybody who listens in them and everybody who
//! connects.
//!
//! | | pod | the other pod |
//! |---|---|---|
//! | eth0 | 10.77.0.2, fd77::2 | 10.77.0.3, fd77::3 |
//! | eth1 | 10.88.0.2, fd88::2 | 10.88.0.3, fd88::3 |
//! | lo | 127/8, ::1, ::6 | 192.0.2.0/24, 198.51.100.0/24, 169.254.169.254, 2001:db8::10, ::20, 2001:db8:1::10 |
//! | lo | | 203.0.113.10, reached through eth1, and .200, by a narrower route through eth0 |
//! | later | 10.99.0.2, fd99::2, on eth0 or on eth2 | on eth2 10.99.0.3, fd99::3 |
//!
//! The addresses on the other pod's `lo` stand for services and the world outside; the pod has routes to
//! them, and an `unreachable` one to 203.0.113.64/28 and 2001:db8:f::/48. It may have one family only.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use harness::netns::NetNs;
use harness::sidecar::{INBOUND_PORT, OUTBOUND_PORT};
use harness::{Capabilities, Family, Node, Pod, Process, Seen, Service, Socket, User, Wire};
use redirect_user::policy::InterceptionMode;

use crate::enforce::{Enforcer, assert_guard_idle};
use crate::foretold::Record;
use crate::outcome::Server;
use crate::scenario::{Families, Late, Listens, Setup, Who, Workers};

/// Ports that have a server in both pods; the sidecar's own two have one in the other pod.
pub(crate) const SERVED: [u16; 11] = [22, 53, 80, 8080, 9000, 9001, 15000, 15008, 15020, 15021, 15090];
/// The same for UDP.
pub(crate) const SERVED_UDP: [u16; 3] = [53, 8080, 9000];
/// A port that has none.
pub(crate) const UNSERVED: u16 = 4444;

const DNS_PROXY_PORT: u16 = 15053;
const WILDCARDS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const LOCALHOSTS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A world. Processes and sockets go before the pods, the pods before the wire.
pub(crate) struct World<'n> {
    enforcer: Enforcer,
    node: &'n Node,
    families: Families,
    late: Late,
    batch: u16,
    clients: Vec<(Who, Process)>,
    sidecar: Option<Process>,
    dns_proxy: Option<Process>,
    servers: Process,
    peer_servers: Process,
    udp: BTreeMap<(Server, Family), Socket>,
    pod: Pod,
    peer: Pod,
    _wire: Wire,
}

impl<'n> World<'n> {
    pub(crate) fn new(node: &'n Node, enforcer: Enforcer, families: Families) -> World<'n> {
        let name = format!("{enforcer:?}-{families:?}").to_lowercase();
        let wire = node.new_wire(&name);
        let (pod, peer) = (wire.pod(&name), wire.pod("peer"));
        lay_out(&pod, &peer);
        take_away(&pod, families);
        greet(&pod, &peer, families);
        enforcer.prepare(&pod);
        for netns in [pod.netns(), peer.netns()] {
            // As container runtimes have it: everybody may serve port 53.
            netns.sysctl("net/ipv4/ip_unprivileged_port_start", "0");
        }
        let servers = pod.app();
        servers.serve(&all(&WILDCARDS, &SERVED), Service::Tell).expect("listen in the pod");
        let peer_servers = peer.app();
        let with_sidecar_ports = [&SERVED[..], &[OUTBOUND_PORT, INBOUND_PORT]].concat();
        peer_servers
            .serve(&all(&WILDCARDS, &with_sidecar_ports), Service::Tell)
            .expect("listen in the other pod");
        let mut clients: Vec<_> =
            Who::IN_POD.map(|who| (who, pod.process(&format!("{who:?}"), who.user()))).into();
        let effective = pod.process("effective", User::ROOT);
        effective.become_both(User::APP.uid, User::PROXY.uid);
        clients.extend([(Who::EffectiveProxy, effective), (Who::Peer, peer.app())]);
        let udp = udp_servers(&servers, &peer_servers);
        let (sidecar, dns_proxy) = (None, None);
        World {
            enforcer,
            node,
            families,
            late: Late::Nothing,
            batch: 0,
            clients,
            sidecar,
            dns_proxy,
            servers,
            peer_servers,
            udp,
            pod,
            peer,
            _wire: wire,
        }
    }

    /// Sets the pod up again, with a sidecar that has just started.
    pub(crate) fn set_up(&mut self, setup: &Setup) {
        self.sidecar = None;
        self.next_ports();
        self.undo_late();
        self.udp.retain(|(server, _), _| *server != Server::DnsProxy);
        self.dns_proxy = None;
        self.enforcer.enforce(self.node, &self.pod, &setup.policy);
        self.start_dns_proxy();
        self.sidecar = match setup.workers {
            Workers::One => self.start_sidecar(setup, 1),
            Workers::Eight => self.start_sidecar(setup, 8),
            Workers::Renewed => {
                let old = self.start_sidecar(setup, 5);
                let new = self.start_sidecar(setup, 5);
                drop(old);
                new
            }
        };
        self.do_late(setup.late);
    }

    /// In TPROXY mode its sockets are transparent, which iptables' sidecar needs capabilities for.
    fn start_sidecar(&self, setup: &Setup, workers: usize) -> Option<Process> {
        let listens = setup.sidecar;
        let addresses = match listens {
            Listens::Everywhere => WILDCARDS.to_vec(),
            Listens::OnLocalhost => LOCALHOSTS.to_vec(),
            Listens::OnlyV4 => WILDCARDS[..1].to_vec(),
            Listens::DualStack | Listens::OnlyV6 => WILDCARDS[1..].to_vec(),
            Listens::Nowhere => return None,
        };
        let transparent = setup.policy.interception_mode == InterceptionMode::Tproxy;
        let capabilities = if transparent { self.enforcer.sidecar_needs() } else { Capabilities::OfUser };
        let sidecar = self.pod.process_with("istio-proxy", User::PROXY, capabilities);
        let addresses = all(&addresses, &[OUTBOUND_PORT, INBOUND_PORT]);
        let dual_stack = listens == Listens::DualStack;
        for _ in 0..workers {
            if transparent {
                sidecar.serve_transparent(&addresses, Service::Tell, dual_stack)
            } else if dual_stack {
                sidecar.serve_dual_stack(&addresses, Service::Tell)
            } else {
                sidecar.serve(&addresses, Service::Tell)
            }
            .expect("listen as a sidecar");
        }
        Some(sidecar)
    }

    /// Gives the pod its late addresses.
    fn do_late(&mut self, late: Late) {
        self.late = late;
        let (pod, peer) = (self.pod.netns(), self.peer.netns());
        match late {
            Late::Nothing => return,
            Late::Addresses => self.add_addresses(pod, "eth0", 2),
            Late::Interface => {
                join(&self.pod, &self.peer, "eth2");
                self.add_addresses(pod, "eth2", 2);
                self.add_addresses(peer, "eth2", 3);
            }
        }
        self.enforcer.catch_up(self.node, &self.pod);
        for ip in ["10.99.0.2", "fd99::2"].map(|ip| ip.parse().expect("an address")) {
            if self.families.have(ip) {
                wait_for(peer, ip);
            }
        }
    }

    fn add_addresses(&self, netns: &NetNs, interface: &str, host: u8) {
        for (family, address) in [
            (Ipv4Addr::UNSPECIFIED.into(), format!("10.99.0.{host}/24")),
            (Ipv6Addr::UNSPECIFIED.into(), format!("fd99::{host}/64")),
        ] {
            if self.families.have(family) {
                let nodad = if family.is_ipv6() { " nodad" } else { "" };
                netns.ip(&format!("addr add {address} dev {interface}{nodad}"));
            }
        }
    }

    fn undo_late(&mut self) {
        match std::mem::take(&mut self.late) {
            Late::Nothing => {}
            Late::Addresses => {
                for (family, address) in [
                    (Ipv4Addr::UNSPECIFIED.into(), "10.99.0.2/24"),
                    (Ipv6Addr::UNSPECIFIED.into(), "fd99::2/64"),
                ] {
                    if self.families.have(family) {
                        self.pod.netns().ip(&format!("addr del {address} dev eth0"));
                    }
                }
            }
            Late::Interface => self.pod.netns().ip("link del eth2"),
        }
    }

    /// The DNS proxy starts with the sidecar, which is after the pod was enrolled.
    fn start_dns_proxy(&mut self) {
        let proxy = self.pod.process("istio-proxy", User::PROXY);
        proxy.serve(&all(&LOCALHOSTS, &[DNS_PROXY_PORT]), Service::Tell).expect("listen as the DNS proxy");
        for family in Family::ALL {
            let socket = udp_server(
                &proxy,
                SocketAddr::new(LOCALHOSTS[usize::from(family == Family::V6)], DNS_PROXY_PORT),
            );
            self.udp.insert((Server::DnsProxy, family), socket);
        }
        self.dns_proxy = Some(proxy);
    }

    /// The guard of this world's pod has refused nothing since the policy was set.
    pub(crate) fn assert_guard_idle(&self) {
        assert_guard_idle(self.node, &self.pod);
    }

    /// What is on record about the pod of ours.
    pub(crate) fn record(&self) -> Record {
        Record::of(self.node, &self.pod)
    }

    /// Gives client sockets a range of ports that no connection under an earlier policy used: iptables
    /// decides once per connection, and would remember an old decision for the same pair of addresses and
    /// ports.
    fn next_ports(&mut self) {
        const SPAN: u16 = 200;
        let low = 20_000 + self.batch % 200 * SPAN;
        self.batch += 1;
        for pod in [&self.pod, &self.peer] {
            pod.netns().sysctl("net/ipv4/ip_local_port_range", &format!("{low} {}", low + SPAN - 1));
        }
    }

    pub(crate) fn client(&self, who: Who) -> &Process {
        &self.clients.iter().find(|(one, _)| *one == who).expect("everybody has a process").1
    }

    /// The server that has accepted this connection, and no other server has accepted anything.
    pub(crate) fn who_saw(&self, seen: &Seen) -> Server {
        let sidecar = self.sidecar.iter().map(|process| (Server::Sidecar(seen.listener), process));
        let dns_proxy = self.dns_proxy.iter().map(|process| (Server::DnsProxy, process));
        let others =
            [(Server::Pod(seen.listener), &self.servers), (Server::Peer(seen.listener), &self.peer_servers)];
        let logs: Vec<_> = sidecar
            .chain(dns_proxy)
            .chain(others)
            .flat_map(|(server, process)| process.take_seen().into_iter().map(move |seen| (server, seen)))
            .collect();
        let [(server, logged)] = &logs[..] else { panic!("{seen:?} is not all that was accepted: {logs:?}") };
        assert_eq!(logged, seen);
        *server
    }

    /// Forgets connections that were accepted but whose client gave up.
    pub(crate) fn forget_seen(&self) {
        let others = [&self.servers, &self.peer_servers];
        for process in others.into_iter().chain(&self.sidecar).chain(&self.dns_proxy) {
            let _ = process.take_seen();
        }
    }

    /// The UDP servers that a datagram to `port` may arrive at.
    pub(crate) fn udp_candidates(&self, port: u16, family: Family) -> Vec<(Server, &Socket)> {
        let servers = [Server::DnsProxy, Server::Pod(port), Server::Peer(port)];
        servers.into_iter().filter_map(|server| Some((server, self.udp.get(&(server, family))?))).collect()
    }
}

/// The second interface, the addresses of the world outside, and the routes to them.
fn lay_out(pod: &Pod, peer: &Pod) {
    join(pod, peer, "eth1");
    peer.netns().ip("addr add 10.88.0.3/16 dev eth1\n\
         addr add fd88::3/64 dev eth1 nodad\n\
         addr add 192.0.2.10/32 dev lo\n\
         addr add 192.0.2.20/32 dev lo\n\
         addr add 198.51.100.10/32 dev lo\n\
         addr add 203.0.113.10/32 dev lo\n\
         addr add 203.0.113.200/32 dev lo\n\
         addr add 169.254.169.254/32 dev lo\n\
         addr add 2001:db8::10/128 dev lo\n\
         addr add 2001:db8::20/128 dev lo\n\
         addr add 2001:db8:1::10/128 dev lo\n\
         route add 10.99.0.0/24 via 10.77.0.2 metric 9000\n\
         route add fd99::/64 via fd77::2 metric 9000");
    pod.netns().ip("addr add 10.88.0.2/16 dev eth1\n\
         addr add fd88::2/64 dev eth1 nodad\n\
         route add 192.0.2.0/24 via 10.77.0.3\n\
         route add 198.51.100.0/24 via 10.77.0.3\n\
         route add 203.0.113.0/24 via 10.88.0.3\n\
         route add 203.0.113.128/25 via 10.77.0.3\n\
         route add unreachable 203.0.113.64/28\n\
         route add 169.254.169.254/32 via 10.77.0.3\n\
         route add 2001:db8::/32 via fd77::3\n\
         route add unreachable 2001:db8:f::/48");
}

/// A cable between the two, an interface of the same name at either end.
fn join(pod: &Pod, peer: &Pod, name: &str) {
    let other = peer.netns().path().display();
    pod.netns().ip(&format!("link add {name} type veth peer name {name}x\nlink set {name}x netns {other}"));
    peer.netns().ip(&format!("link set {name}x name {name}\nlink set {name} up"));
    pod.netns().ip(&format!("link set {name} up"));
}

/// Removes the pod's addresses of the family that it does not have, and with them its routes.
fn take_away(pod: &Pod, families: Families) {
    match families {
        Families::Both => {}
        Families::OnlyV6 => {
            pod.netns().ip("addr del 10.77.0.2/16 dev eth0\naddr del 10.88.0.2/16 dev eth1");
        }
        Families::OnlyV4 => {
            pod.netns().ip("route del ::/0\n\
                 route del 2001:db8::/32\n\
                 addr del fd77::2/64 dev eth0\n\
                 addr del fd88::2/64 dev eth1");
        }
    }
}

/// The first packet on a new link may be lost, and neighbours have to find each other: none of that is a
/// difference.
fn greet(pod: &Pod, peer: &Pod, families: Families) {
    for (netns, addresses) in [
        (pod.netns(), ["10.77.0.3", "10.88.0.3", "fd77::3", "fd88::3"]),
        (peer.netns(), ["10.77.0.2", "10.88.0.2", "fd77::2", "fd88::2"]),
    ] {
        for ip in addresses.map(|ip| ip.parse().expect("an address")) {
            if families.have(ip) {
                wait_for(netns, ip);
            }
        }
    }
}

/// Waits until the host at `ip` says that it has no server at a UDP port. That does not open a connection,
/// and neither world captures it.
fn wait_for(netns: &NetNs, ip: IpAddr) {
    let any = if ip.is_ipv6() { WILDCARDS[1] } else { WILDCARDS[0] };
    netns.run(|| {
        let socket = UdpSocket::bind((any, 0)).expect("a UDP socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        socket.connect((ip, UNSERVED)).unwrap_or_else(|error| panic!("no way to {ip}: {error}"));
        let refused = |_| {
            let answer = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 1]));
            answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        assert!((0..60).any(refused), "{ip} cannot be reached");
    });
}

fn all(addresses: &[IpAddr], ports: &[u16]) -> Vec<SocketAddr> {
    addresses.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port))).collect()
}

fn udp_servers(servers: &Process, peer: &Process) -> BTreeMap<(Server, Family), Socket> {
    let mut sockets = BTreeMap::new();
    for family in Family::ALL {
        for port in SERVED_UDP {
            let at = SocketAddr::new(WILDCARDS[usize::from(family == Family::V6)], port);
            sockets.insert((Server::Pod(port), family), udp_server(servers, at));
            sockets.insert((Server::Peer(port), family), udp_server(peer, at));
        }
    }
    sockets
}

fn udp_server(process: &Process, at: SocketAddr) -> Socket {
    let socket = process.udp(Family::of(&at.ip()));
    if at.is_ipv6() {
        socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).expect("IPV6_V6ONLY");
    }
    // It answers from where it was asked, as Istio's agent does.
    socket.tell_destinations(Family::of(&at.ip())).expect("IP_PKTINFO");
    socket.bind(at).expect("bind a UDP server");
    socket
}
