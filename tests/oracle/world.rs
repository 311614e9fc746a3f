//! One of the two worlds: a pod, another pod beside it, everybody who listens in them and everybody who
//! connects.
//!
//! | | pod | the other pod |
//! |---|---|---|
//! | eth0 | 10.77.0.2, fd77::2 | 10.77.0.3, fd77::3 |
//! | eth1 | 10.88.0.2, fd88::2 | 10.88.0.3, fd88::3 |
//! | lo | 127/8, ::1, ::6 | 192.0.2.0/24, 198.51.100.0/24, 169.254.169.254, 2001:db8::10, ::20, 2001:db8:1::10 |
//!
//! The addresses on the other pod's `lo` stand for services and the world outside; the pod has routes to
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use harness::sidecar::{INBOUND_PORT, OUTBOUND_PORT};
use harness::{Node, Pod, Process, Seen, Service, Socket, User, Wire};

use crate::enforce::Enforcer;
use crate::foretold::Record;
use crate::outcome::Server;
use crate::scenario::{Listens, Setup, Who};

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
    batch: u16,
    clients: Vec<(Who, Process)>,
    sidecar: Option<Process>,
    dns_proxy: Process,
    servers: Process,
    peer_servers: Process,
    udp: BTreeMap<(Server, bool), Socket>,
    pod: Pod,
    peer: Pod,
    _wire: Wire,
}

impl<'n> World<'n> {
    pub(crate) fn new(node: &'n Node, enforcer: Enforcer) -> World<'n> {
        let name = format!("{enforcer:?}").to_lowercase();
        let wire = node.new_wire(&name);
        let (pod, peer) = (wire.pod(&name), wire.pod("peer"));
        lay_out(&pod, &peer);
        greet(&pod, &peer);
        for netns in [pod.netns(), peer.netns()] {
            // As container runtimes have it: everybody may serve port 53.
            netns.sysctl("net/ipv4/ip_unprivileged_port_start", "0");
        }
        let servers = pod.app();
        servers.serve(&all(WILDCARDS, &SERVED), Service::Tell).expect("listen in the pod");
        let peer_servers = peer.app();
        let with_sidecar_ports = [&SERVED[..], &[OUTBOUND_PORT, INBOUND_PORT]].concat();
        peer_servers
            .serve(&all(WILDCARDS, &with_sidecar_ports), Service::Tell)
            .expect("listen in the other pod");
        let dns_proxy = pod.process("istio-proxy", User::PROXY);
        dns_proxy.serve(&all(LOCALHOSTS, &[DNS_PROXY_PORT]), Service::Tell).expect("listen as the DNS proxy");
        let mut clients: Vec<_> =
            Who::IN_POD.map(|who| (who, pod.process(&format!("{who:?}"), who.user()))).into();
        clients.push((Who::Peer, peer.app()));
        let udp = udp_servers(&dns_proxy, &servers, &peer_servers);
        let sidecar = None;
        World {
            enforcer,
            node,
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
        self.enforcer.enforce(self.node, &self.pod, &setup.policy);
        let addresses = match setup.sidecar {
            Listens::Everywhere => WILDCARDS,
            Listens::OnLocalhost => LOCALHOSTS,
            Listens::Nowhere => return,
        };
        let sidecar = self.pod.process("istio-proxy", User::PROXY);
        sidecar
            .serve(&all(addresses, &[OUTBOUND_PORT, INBOUND_PORT]), Service::Tell)
            .expect("listen as a sidecar");
        self.sidecar = Some(sidecar);
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
        let others = [
            (Server::DnsProxy, &self.dns_proxy),
            (Server::Pod(seen.listener), &self.servers),
            (Server::Peer(seen.listener), &self.peer_servers),
        ];
        let logs: Vec<_> = sidecar
            .chain(others)
            .flat_map(|(server, process)| process.take_seen().into_iter().map(move |seen| (server, seen)))
            .collect();
        let [(server, logged)] = &logs[..] else { panic!("{seen:?} is not all that was accepted: {logs:?}") };
        assert_eq!(logged, seen);
        *server
    }

    /// Forgets connections that were accepted but whose client gave up.
    pub(crate) fn forget_seen(&self) {
        let others = [&self.dns_proxy, &self.servers, &self.peer_servers];
        for process in others.into_iter().chain(&self.sidecar) {
            let _ = process.take_seen();
        }
    }

    /// The UDP servers that a datagram to `port` may arrive at.
    pub(crate) fn udp_candidates(&self, port: u16, v6: bool) -> Vec<(Server, &Socket)> {
        let servers = [Server::DnsProxy, Server::Pod(port), Server::Peer(port)];
        servers.into_iter().filter_map(|server| Some((server, self.udp.get(&(server, v6))?))).collect()
    }
}

/// The second interface, the addresses of the world outside, and the routes to them.
fn lay_out(pod: &Pod, peer: &Pod) {
    pod.netns().ip(&format!(
        "link add eth1 type veth peer name eth1x\nlink set eth1x netns {}",
        peer.netns().path().display()
    ));
    peer.netns().ip("link set eth1x name eth1\n\
         addr add 10.88.0.3/16 dev eth1\n\
         addr add fd88::3/64 dev eth1 nodad\n\
         link set eth1 up\n\
         addr add 192.0.2.10/32 dev lo\n\
         addr add 192.0.2.20/32 dev lo\n\
         addr add 198.51.100.10/32 dev lo\n\
         addr add 169.254.169.254/32 dev lo\n\
         addr add 2001:db8::10/128 dev lo\n\
         addr add 2001:db8::20/128 dev lo\n\
         addr add 2001:db8:1::10/128 dev lo");
    pod.netns().ip("addr add 10.88.0.2/16 dev eth1\n\
         addr add fd88::2/64 dev eth1 nodad\n\
         link set eth1 up\n\
         route add 192.0.2.0/24 via 10.77.0.3\n\
         route add 198.51.100.0/24 via 10.77.0.3\n\
         route add 169.254.169.254/32 via 10.77.0.3\n\
         route add 2001:db8::/32 via fd77::3");
}

/// The first packet on a new link may be lost, and neighbours have to find each other: none of that is a
/// difference.
fn greet(pod: &Pod, peer: &Pod) {
    let (one, other) = (pod.app(), peer.app());
    for (client, server, addresses) in [
        (&one, &other, ["10.77.0.3", "10.88.0.3", "fd77::3", "fd88::3"]),
        (&other, &one, ["10.77.0.2", "10.88.0.2", "fd77::2", "fd88::2"]),
    ] {
        for ip in addresses {
            let at = SocketAddr::new(ip.parse().expect("an address"), UNSERVED);
            let _listener = server.listen(at).expect("listen for a greeting");
            drop(client.connect(at).unwrap_or_else(|error| panic!("{at} is not reachable: {error}")));
        }
    }
}

fn all(addresses: [IpAddr; 2], ports: &[u16]) -> Vec<SocketAddr> {
    addresses.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port))).collect()
}

fn udp_servers(dns_proxy: &Process, servers: &Process, peer: &Process) -> BTreeMap<(Server, bool), Socket> {
    let mut sockets = BTreeMap::new();
    for v6 in [false, true] {
        let mut open = |server: Server, process: &Process, ip: [IpAddr; 2], port: u16| {
            let socket = process.udp(v6);
            if v6 {
                socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).expect("IPV6_V6ONLY");
            }
            socket.bind(SocketAddr::new(ip[usize::from(v6)], port)).expect("bind a UDP server");
            sockets.insert((server, v6), socket);
        };
        open(Server::DnsProxy, dns_proxy, LOCALHOSTS, DNS_PROXY_PORT);
        for port in SERVED_UDP {
            open(Server::Pod(port), servers, WILDCARDS, port);
            open(Server::Peer(port), peer, WILDCARDS, port);
        }
    }
    sockets
}
