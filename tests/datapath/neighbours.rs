//! Somebody else has programs on the same hooks: on the node's cgroups or the pod's own, before us and after,
//! and in the pod's network namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use harness::cli::Outcome;
use harness::neighbour::{
    Attached, CONNECT4, EXCLUSIVE, MULTI, OF_CGROUPS, PREORDER, SOCK_OPS, answer, give_to, has_preorder,
    in_namespace, replace_flags, rewrite, table_of,
};
use harness::{Errno, Event, Family, Node, Pod, Process, Service, User, any, kernel_test};

use crate::pretend::deferring;
use crate::{crowded, enrolled, far_away};

/// An address of a service that only a load balancer knows.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 96);

/// Everybody else's programs on each hook of this cgroup, which change nothing.
fn on_every_hook(cgroup: &Path, name: &str, flags: u32) -> Vec<Attached> {
    OF_CGROUPS.into_iter().map(|hook| Attached::new(cgroup, hook, name, &answer(1), flags)).collect()
}

/// A connection in each direction and of each family.
fn assert_captured(pod: &Pod, other: &Pod) {
    let (app, client) = (pod.app(), other.app());
    for family in Family::ALL {
        let outbound = app.connect(far_away(family, 80)).unwrap();
        let seen = outbound.seen();
        assert_eq!((seen.listener, seen.original_dst), (15001, Ok(far_away(family, 80))));
        assert_eq!(outbound.peername(), Ok(far_away(family, 80)));
        let inbound = client.connect(pod.at(family, 8080)).unwrap().seen();
        assert_eq!((inbound.listener, inbound.original_dst), (15006, Ok(pod.at(family, 8080))));
    }
}

#[test]
fn programs_on_every_hook_before_and_after_ours() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let around =
            || [on_every_hook(node.cgroup(), "above", MULTI), on_every_hook(pod.cgroup(), "beside", MULTI)];
        let before = around();
        node.attach(&pod, &[]);
        let after = around();
        let first = has_preorder(node.cgroup()).then(|| on_every_hook(node.cgroup(), "first", PREORDER));
        let _sidecar = pod.sidecar();
        assert_captured(&pod, &other);
        drop((before, first));
        assert_captured(&pod, &other);
        // Ours go alone; what is left are the neighbours', which would say so if they were not.
        node.detach(&pod);
        drop(after);
    });
}

#[test]
fn a_neighbour_that_denies_is_obeyed() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let _sidecar = pod.sidecar();
        for cgroup in [node.cgroup(), pod.cgroup()] {
            let _denies = Attached::new(cgroup, CONNECT4, "denies", &answer(0), MULTI);
            let refused = pod.app().connect(far_away(Family::V4, 80)).map(drop);
            assert_eq!(refused, Err(Errno::EPERM), "{}", cgroup.display());
        }
        assert_captured(&pod, &other);
    });
}

/// The kernel asks who stands on the cgroups above when something is attached. Later it looks at the pod's
/// own cgroup first, and an exclusive program above it does not count where there is one.
#[test]
fn an_exclusive_program_that_comes_later_does_not_reach_the_pod_and_no_other_pod_is_attached() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let _sidecar = pod.sidecar();
        let _denies = Attached::new(node.cgroup(), CONNECT4, "denies", &answer(0), EXCLUSIVE);
        let outbound = pod.app().connect(far_away(Family::V4, 80)).unwrap();
        assert_eq!(outbound.seen().original_dst, Ok(far_away(Family::V4, 80)));
        let refused = Outcome::of(&mut node.attach_command(&other));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for words in ["connect4", "exclusively"] {
            assert!(refused.stderr.contains(words), "{refused:?}");
        }
        assert_eq!(node.attached(), ["pod"]);
    });
}

/// A load balancer at `connect()` whose service has one endpoint.
fn balancer(node: &Node, endpoint: IpAddr, flags: u32) -> Attached {
    let IpAddr::V4(endpoint) = endpoint else { unreachable!("an IPv4 address") };
    Attached::new(node.cgroup(), CONNECT4, "balancer", &rewrite(CLUSTER_IP, endpoint), flags)
}

#[test]
fn a_load_balancer_at_connect_does_not_lead_past_the_sidecar() {
    kernel_test(|node| {
        let (pod, backend, direct) = (enrolled(node, "pod"), node.pod("backend"), node.pod("direct"));
        let _sidecar = pod.sidecar();
        let served = backend.app();
        served.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let service = SocketAddr::new(CLUSTER_IP.into(), 8080);
        // A program above runs after ours, which has chosen already: the sidecar learns what was dialled.
        let after = balancer(node, backend.ip(Family::V4), MULTI);
        let seen = pod.app().connect(service).unwrap().seen();
        assert_eq!((seen.listener, seen.original_dst), (15001, Ok(service)));
        // So is what the policy leaves alone, and the guard knows that it was: it sees the endpoint only.
        node.attach(&direct, &["--exclude-outbound-ip-ranges", &format!("{CLUSTER_IP}/32")]);
        assert_eq!(direct.app().connect(service).unwrap().seen().local, backend.at(Family::V4, 8080));
        // The sidecar's own call is the balancer's.
        let own = pod.proxy().connect(service).unwrap().seen();
        assert_eq!((own.listener, own.local), (8080, backend.at(Family::V4, 8080)));
        drop(after);
        if !has_preorder(node.cgroup()) {
            return;
        }
        // With PREORDER it runs before ours: the sidecar learns the endpoint.
        let _before = balancer(node, backend.ip(Family::V4), PREORDER);
        let seen = pod.app().connect(service).unwrap().seen();
        assert_eq!((seen.listener, seen.original_dst), (15001, Ok(backend.at(Family::V4, 8080))));
    });
}

#[test]
fn the_sidecar_dials_a_service_whose_endpoint_is_its_own_pod() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let _sidecar = pod.sidecar();
        let app = pod.app();
        app.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let service = SocketAddr::new(CLUSTER_IP.into(), 8080);
        if has_preorder(node.cgroup()) {
            // As without a balancer: the sidecar's call of its own pod comes in by the inbound listener.
            let _before = balancer(node, pod.ip(Family::V4), PREORDER);
            assert_eq!(pod.proxy().connect(service).unwrap().seen().listener, 15006);
        }
        // After ours the balancer chooses what we have not seen (RC0304 in docs/doctor.md).
        let _after = balancer(node, pod.ip(Family::V4), MULTI);
        assert_eq!(pod.proxy().connect(service).unwrap().seen().listener, 8080);
    });
}

#[test]
fn another_program_of_sk_lookup_in_the_pods_namespace() {
    const PASS: i32 = 1;
    const DROP: i32 = 0;
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let netns = pod.netns().path().to_owned();
        let before = in_namespace(&netns, "before", &answer(PASS));
        node.attach(&pod, &[]);
        let after = in_namespace(&netns, "after", &answer(PASS));
        let _sidecar = pod.sidecar();
        assert_captured(&pod, &other);
        drop((before, after));
        let client = other.app();
        let outcome = || client.connect(pod.at(Family::V4, 8080)).map(|socket| socket.seen().listener);
        let _drops = in_namespace(&netns, "drops", &answer(DROP));
        let seen = outcome();
        assert!(seen == Ok(15006) || seen == Err(Errno::ECONNREFUSED), "{seen:?}");
    });
}

/// The kernel asks all programs in turn, and the last one that names a socket wins.
#[test]
fn a_program_of_sk_lookup_that_takes_everything_gets_nothing_of_the_sidecars() {
    kernel_test(|node| {
        let other = node.pod("other");
        let client = other.app();
        for (name, theirs_first) in [("first", true), ("last", false)] {
            let pod = node.pod(name);
            let theirs = pod.netns().run(|| TcpListener::bind(("0.0.0.0", 8080)).expect("listen"));
            theirs.set_nonblocking(true).expect("a socket");
            let table = table_of(&theirs);
            let code = give_to(&table);
            let takes = || in_namespace(pod.netns().path(), "takes", &code);
            let first = theirs_first.then(takes);
            node.attach(&pod, &[]);
            let _last = (!theirs_first).then(takes);
            let refused = client.connect(pod.at(Family::V4, 8080)).map(drop);
            assert_eq!(refused, Err(Errno::ECONNREFUSED), "{name}, without a sidecar");
            let before = node.count(&pod, Event::GuardInbound);
            let _sidecar = pod.sidecar();
            for port in [8080, 9090] {
                let seen = client.connect(pod.at(Family::V4, port)).unwrap().seen();
                assert_eq!(
                    (seen.listener, seen.original_dst),
                    (15006, Ok(pod.at(Family::V4, port))),
                    "{name}"
                );
            }
            // The guard has seen whose it would have been.
            let seen = node.count(&pod, Event::GuardInbound) - before;
            assert_eq!(seen, if theirs_first { 0 } else { 2 }, "{name}");
            // Without the guard the last one has it.
            node.attach(&pod, &["--guard", "off"]);
            let socket = client.connect(pod.at(Family::V4, 8080)).unwrap();
            if theirs_first {
                assert_eq!(socket.seen().listener, 15006);
            } else {
                assert!(theirs.accept().is_ok());
            }
            drop(first);
        }
    });
}

/// Handshakes that the sidecar does not finish, then ports that an application listens on for a moment: how
/// many entries of HANDOFF and of LISTENING are left.
fn left_over(node: &Node, pod: &Pod) -> (usize, usize) {
    let (app, proxy) = (pod.app(), pod.proxy());
    let _listener = deferring(&proxy, Family::V4, 15001);
    assert_eq!(app.open_many(&crowded(Family::V4), 20).error, None);
    app.close_many();
    drop(app.listen(any(Family::V4, 40_001)).unwrap());
    (node.handshakes().len(), node.entries_of("LISTENING"))
}

/// `bpf_sock_ops_cb_flags_set()` replaces the wishes of all programs for callbacks of this socket.
#[test]
fn a_program_of_sock_ops_that_replaces_the_wishes_for_callbacks() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let before = Attached::new(pod.cgroup(), SOCK_OPS, "before", &replace_flags(0), MULTI);
        let first = has_preorder(node.cgroup())
            .then(|| Attached::new(node.cgroup(), SOCK_OPS, "first", &replace_flags(0), PREORDER));
        node.attach(&pod, &[]);
        assert_eq!(left_over(node, &pod), (0, 0));
        drop((before, first));
        // After ours: the kernel does not tell when a socket is closed. The entries stay until detach, within
        // the pod's share.
        let _after = Attached::new(node.cgroup(), SOCK_OPS, "after", &replace_flags(0), MULTI);
        assert_eq!(left_over(node, &pod), (5, 1));
        assert_eq!(node.claims(&pod).handshakes, 5);
        let _sidecar = pod.sidecar();
        assert_captured(&pod, &other);
        for to in crowded(Family::V4) {
            assert_eq!(pod.app().connect(to).unwrap().seen().original_dst, Ok(to));
        }
        node.detach(&pod);
        assert_eq!(node.handshakes(), []);
    });
}

/// Which programs a call meets is said by the cgroup in which the socket was made.
#[test]
fn a_process_that_is_moved_to_another_cgroup() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let server = other.app();
        server.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let to = other.at(Family::V4, 8080);
        let (early, late) = (app.tcp(Family::V4), other.container("elsewhere"));
        let moved = |process: &Process, to: &Path| {
            std::fs::write(to.join("cgroup.procs"), process.pid().to_string()).expect("move a process");
        };
        moved(&app, &late);
        early.connect(to).unwrap();
        assert_eq!(early.seen().listener, 15001);
        assert_eq!(app.connect(to).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(node.count(&pod, Event::GuardOutbound), 1);
        moved(&app, &pod.container("app"));
        assert_eq!(app.connect(to).unwrap().seen().listener, 15001);
        // What comes into the pod from elsewhere is the pod's from its next socket on.
        let guest = Process::start("guest", pod.netns(), &late, User::APP);
        moved(&guest, &pod.container("app"));
        assert_eq!(guest.connect(to).unwrap().seen().listener, 15001);
        assert_eq!(server.take_seen(), []);
    });
}

/// Rules of the pod's own author, one port to another: the sidecar goes on to where they lead, as what it
/// sends there does not pass them again.
#[test]
fn a_port_that_the_pods_own_rules_lead_elsewhere() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let _sidecar = pod.sidecar();
        let rules = "add table ip own\nadd chain ip own in { type nat hook prerouting priority -100; }\n\
                     add rule ip own in tcp dport 80 redirect to :8080\n";
        let _ = pod.netns().output_of(Command::new("nft").arg(rules));
        let seen = other.app().connect(pod.at(Family::V4, 80)).unwrap().seen();
        assert_eq!((seen.listener, seen.original_dst), (15006, Ok(pod.at(Family::V4, 8080))));
    });
}
