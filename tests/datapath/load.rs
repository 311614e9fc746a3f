//! In thousands: nothing piles up, nothing runs out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use harness::{Event, Family, Node, Pod, Process, Seen, Sidecar, kernel_test};

use crate::pretend::deferring;
use crate::{crowded, enrolled, far_away};

#[test]
fn a_thousand_connections_leave_no_handshake_behind() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let sidecar = pod.sidecar();
        let app = pod.app();
        for family in Family::ALL {
            for _ in 0..10 {
                // Three quarters of them have a slot, the others take the detour.
                let opened = app.open_many(&crowded(family), 100);
                assert_eq!((opened.count, opened.error), (100, None));
                app.close_many();
            }
        }
        // Of most the sidecar saw nothing: they were reset before it accepted them.
        assert!(sidecar.take_seen().iter().all(|seen| seen.original_dst.is_ok()));
        assert_eq!((node.handshakes(), node.claims(&pod).handshakes), (vec![], 0));
        assert_eq!(node.count(&pod, Event::OutboundRedirected), 2000);
        assert_eq!(node.count(&pod, Event::HandoffTaken), 500);
        assert_eq!(node.count(&pod, Event::HandoffMissing), 0);
    });
}

#[test]
fn connections_reset_before_the_sidecar_accepts_them_leave_no_handshake_behind() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            // It listens, and never accepts.
            let _listener = proxy.listen(crate::any(family, 15001)).unwrap();
            for _ in 0..5 {
                assert_eq!(app.open_many(&crowded(family), 100).error, None);
                app.close_many();
            }
        }
        assert_eq!((node.handshakes(), node.claims(&pod).handshakes), (vec![], 0));
    });
}

#[test]
fn handshakes_that_the_sidecar_never_finishes_are_forgotten() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            // The client believes it is connected; the sidecar's kernel waits for data before it makes a
            // socket. A full accept queue has the same effect.
            let _listener = deferring(&proxy, family, 15001);
            assert_eq!(app.open_many(&crowded(family), 20).error, None);
            assert_eq!(node.handshakes().len(), 5);
            app.close_many();
            assert_eq!((node.handshakes(), node.claims(&pod).handshakes), (vec![], 0));
        }
    });
}

/// How many connections are open at once in the test below; more than one range of ephemeral ports (28,232).
const MANY: usize = 40_000;
/// Processes that share them on each side, because each may have 20,000 descriptors.
const PROCESSES: usize = 4;

#[test]
fn forty_thousand_connections_at_once_to_several_destinations() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let mut destinations: Vec<_> =
            (0..6).map(|n| SocketAddr::new(IpAddr::from([192, 0, 2, 10 + n]), 80)).collect();
        destinations.extend(crowded(Family::V4));
        hold_many(node, &pod, &destinations);
    });
}

#[test]
fn forty_thousand_connections_at_once_to_one_destination() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        // As many as the pod could open to one address without us.
        pod.netns().sysctl("net/ipv4/ip_local_port_range", "1024 65535");
        hold_many(node, &pod, &[far_away(Family::V4, 80)]);
    });
}

#[test]
fn forty_thousand_ipv6_connections_at_once() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        pod.netns().sysctl("net/ipv4/ip_local_port_range", "1024 65535");
        hold_many(node, &pod, &[far_away(Family::V6, 80), far_away(Family::V6, 81)]);
    });
}

/// Opens them all, keeps them open, and looks at what the sidecar saw of each.
fn hold_many(node: &Node, pod: &Pod, destinations: &[SocketAddr]) {
    let sidecar = Sidecar::builder(pod).workers(PROCESSES).start();
    let apps: Vec<Process> = (0..PROCESSES).map(|_| pod.app()).collect();
    let begin = Instant::now();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            apps.iter().map(|app| scope.spawn(|| app.open_many(destinations, MANY / PROCESSES))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for opened in opened {
        assert_eq!((opened.count, opened.error), (MANY / PROCESSES, None));
    }
    println!("{MANY} connections to {} destinations in {:?}", destinations.len(), begin.elapsed());

    let seen = take_all(&sidecar, MANY);
    let mut per_destination = BTreeMap::new();
    for seen in &seen {
        *per_destination.entry(seen.original_dst.unwrap()).or_insert(0) += 1;
    }
    let expected = destinations.iter().map(|to| (*to, MANY / destinations.len()));
    assert_eq!(per_destination, expected.collect());
    let clients: BTreeSet<IpAddr> = seen.iter().map(|seen| seen.client.ip()).collect();
    assert_eq!(clients, BTreeSet::from([pod.ip(Family::of(&destinations[0].ip()))]));
    assert_eq!(node.handshakes(), []);
    assert_eq!(node.count(pod, Event::OutboundRedirected), MANY as u64);
    apps.iter().for_each(Process::close_many);
}

/// What a sidecar saw of `count` connections: it may still be accepting the last of them.
fn take_all(sidecar: &Sidecar, count: usize) -> Vec<Seen> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut seen = sidecar.take_seen();
    while seen.len() < count && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        seen.extend(sidecar.take_seen());
    }
    assert_eq!(seen.len(), count);
    seen
}
