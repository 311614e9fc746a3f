//! What lies behind the sidecar in TPROXY mode: in one world a privileged sidecar with the rules that Istio
//! loads (TPROXY, marks, a routing table), in the other one without any capability. The sidecar's system
//! calls are made one by one, as Envoy makes them, and what each of them and the application sees is
//! compared.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use harness::{Capabilities, Errno, Family, Level, Node, Pod, Process, Socket, User, Wire, kernel_test};
use redirect_user::policy::{InterceptionMode, Policy};

use crate::differences::BEHIND_THE_SIDECAR;
use crate::enforce::{Enforcer, assert_guard_idle};

/// What is tried.
#[derive(Clone, Copy, Debug)]
struct Try {
    family: Family,
    /// The application's port.
    to: u16,
    /// Where the client is: on the other pod's `lo`, at its own address, or in the pod itself.
    from: From,
    /// The sidecar names the client's port as well (`bind_port`).
    port: bool,
    /// The application listens.
    served: bool,
    /// The application's socket is an IPv6 one that takes IPv4.
    dual_stack: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Afar,
    OtherPod,
    Itself,
}

/// What was seen. Ports that the kernel chooses are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Through {
    /// The client's `connect()`.
    dialled: Result<(), Errno>,
    /// What the sidecar's accepted socket says: the client, with its port, and SO_ORIGINAL_DST.
    by_sidecar: Option<(bool, Result<SocketAddr, Errno>)>,
    /// The sidecar's `bind()` and `connect()` in its client's name.
    bound: Option<Result<(), Errno>>,
    connected: Option<Result<(), Errno>>,
    /// `getsockname()` of that socket.
    own: Option<IpAddr>,
    /// `getpeername()` of the application's socket, and whether its port is the client's.
    by_application: Option<(IpAddr, bool)>,
    /// `getsockname()` of it.
    local: Option<SocketAddr>,
    /// Bytes came through in both directions.
    talked: bool,
}

/// A pod, and another one beside it. Sockets and processes go before the pods, the pods before the wire.
struct World {
    listeners: [Socket; 2],
    sidecar: Process,
    pod: Pod,
    other: Pod,
    _wire: Wire,
}

impl World {
    fn new(node: &Node, enforcer: Enforcer, name: &str, sidecar: (User, Capabilities)) -> World {
        let wire = node.new_wire(name);
        let (pod, other) = (wire.pod(name), wire.pod(&format!("{name}-other")));
        other.netns().ip("addr add 192.0.2.10/32 dev lo\naddr add 2001:db8::10/128 dev lo");
        pod.netns().ip("route add 192.0.2.0/24 via 10.77.0.3\nroute add 2001:db8::/32 via fd77::3");
        enforcer.prepare(&pod);
        let policy = Policy { interception_mode: InterceptionMode::Tproxy, ..Policy::default() };
        enforcer.enforce(node, &pod, &policy);
        let sidecar = pod.process_with("istio-proxy", sidecar.0, sidecar.1);
        let listeners = Family::ALL.map(|family| {
            let socket = transparent(&sidecar, family);
            if family == Family::V6 {
                socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).expect("IPV6_V6ONLY");
            }
            let any = if family == Family::V6 { "[::]:15006" } else { "0.0.0.0:15006" };
            socket.bind(any.parse().expect("an address")).expect("bind to 15006");
            socket.listen().expect("listen at 15006");
            socket
        });
        World { listeners, sidecar, pod, other, _wire: wire }
    }

    /// The client's socket, bound where it is.
    fn client(&self, what: &Try) -> Socket {
        let process = match what.from {
            // The sidecar, which has chosen its own pod.
            From::Itself => self.sidecar.clone(),
            From::Afar | From::OtherPod => self.other.app(),
        };
        let socket = process.tcp_nonblocking(what.family);
        if what.from == From::Afar {
            let ip = if what.family == Family::V6 { "[2001:db8::10]:0" } else { "192.0.2.10:0" };
            socket.bind(ip.parse().expect("an address")).expect("bind the client");
        }
        socket
    }

    fn try_it(&self, what: &Try) -> Through {
        let app = self.pod.app();
        // A port of its own each time: what is accepted at the port that is dialled may be in TIME_WAIT
        // there.
        let to = self.pod.at(what.family, what.to);
        let application = what.served.then(|| serve(&app, what));
        let client = self.client(what);
        let dialled = match client.connect(to) {
            Err(Errno::EINPROGRESS) => client.await_connect(),
            other => other,
        };
        let mut through = Through {
            dialled,
            by_sidecar: None,
            bound: None,
            connected: None,
            own: None,
            by_application: None,
            local: None,
            talked: false,
        };
        let Ok(accepted) = self.listeners[usize::from(what.family == Family::V6)].accept() else {
            return through;
        };
        let client_is = accepted.peername().expect("the accepted socket has a peer");
        let level = if what.family == Family::V6 { Level::Ipv6 } else { Level::Ip };
        through.by_sidecar = Some((client_is == client.sockname(), accepted.original_dst(level)));
        let upstream = transparent(&self.sidecar, what.family);
        // By which Istio's rules know it. A listener has none, or its answers would come back to the pod.
        upstream.set_option(libc::SOL_SOCKET, libc::SO_MARK, 1337).expect("a mark");
        let as_client = SocketAddr::new(client_is.ip(), if what.port { client_is.port() } else { 0 });
        through.bound = Some(upstream.bind(as_client));
        through.connected = Some(upstream.connect(to));
        through.own = Some(upstream.sockname().ip());
        let Some(Ok(got)) = application.filter(|_| through.connected == Some(Ok(()))).map(|at| at.accept())
        else {
            return through;
        };
        let peer = got.peername().expect("the application's socket has a peer");
        through.by_application = Some((peer.ip().to_canonical(), peer.port() == client_is.port()));
        let local = got.sockname();
        through.local = Some(SocketAddr::new(local.ip().to_canonical(), local.port()));
        let there = upstream.send(b"ask").and_then(|_| got.receive(3)).is_ok_and(|got| got.data == b"ask");
        let back = got.send(b"say").and_then(|_| upstream.receive(3)).is_ok_and(|got| got.data == b"say");
        through.talked = there && back;
        through
    }
}

fn serve(app: &Process, what: &Try) -> Socket {
    let family = if what.dual_stack { Family::V6 } else { what.family };
    let socket = app.tcp(family);
    socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
    let any = if family == Family::V6 { "[::]" } else { "0.0.0.0" };
    socket.bind(format!("{any}:{}", what.to).parse().expect("an address")).expect("bind the application");
    socket.listen().expect("listen as the application");
    socket
}

fn transparent(process: &Process, family: Family) -> Socket {
    let socket = process.tcp(family);
    let (level, name) = if family == Family::V6 {
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
    } else {
        (libc::SOL_IP, libc::IP_TRANSPARENT)
    };
    socket.set_option(level, name, 1).expect("a transparent socket");
    socket
}

fn tries() -> Vec<Try> {
    let mut tries = Vec::new();
    for family in Family::ALL {
        let usual = Try { family, to: 0, from: From::Afar, port: false, served: true, dual_stack: false };
        tries.extend([
            usual,
            Try { port: true, ..usual },
            Try { from: From::OtherPod, ..usual },
            Try { from: From::OtherPod, port: true, ..usual },
            Try { from: From::Itself, ..usual },
            Try { served: false, ..usual },
            Try { dual_stack: true, ..usual },
        ]);
    }
    let ports = 8000..;
    tries.iter().zip(ports).map(|(one, to)| Try { to, ..*one }).collect()
}

#[test]
fn the_application_sees_the_client_that_it_sees_behind_a_privileged_sidecar() {
    kernel_test(|node| {
        // Istio's rules send what a sidecar of uid 1337 dials in its own pod back to it; the injector writes
        // 0.
        let privileged =
            World::new(node, Enforcer::Iptables, "iptables", (User::TPROXY, Capabilities::OfUser));
        let ours = [("ours", User::PROXY), ("ours-root", User::TPROXY)]
            .map(|(name, user)| World::new(node, Enforcer::Ours, name, (user, Capabilities::None)));
        let mut met = BTreeSet::new();
        for what in tries() {
            let expected = privileged.try_it(&what);
            println!("{what:?}: {expected:?}");
            for world in &ours {
                let mut got = world.try_it(&what);
                // Where the client is the pod itself, there is nothing to pretend.
                let passthrough: IpAddr =
                    if what.family == Family::V6 { "::6" } else { "127.0.0.6" }.parse().expect("an address");
                if what.from != From::Itself {
                    assert_eq!(got.own, Some(passthrough), "{what:?}: {got:?}");
                    got.own = expected.own;
                    met.insert("tproxy-sockname");
                }
                assert_eq!(got, expected, "{what:?}, {}", world.pod.name());
            }
            let seen = expected.by_application.map(|(client, _)| client);
            let client = match (what.from, what.family) {
                (From::Afar, Family::V4) => "192.0.2.10",
                (From::Afar, Family::V6) => "2001:db8::10",
                (From::OtherPod, Family::V4) => "10.77.0.3",
                (From::OtherPod, Family::V6) => "fd77::3",
                (From::Itself, Family::V4) => "10.77.0.2",
                (From::Itself, Family::V6) => "fd77::2",
            };
            assert_eq!(seen, what.served.then(|| client.parse().expect("an address")), "{what:?}");
        }
        ours.iter().for_each(|world| assert_guard_idle(node, &world.pod));
        assert_eq!(met, BEHIND_THE_SIDECAR.iter().copied().collect());
    });
}
