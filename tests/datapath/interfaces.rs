//! `excludeInterfaces`, outbound: what leaves by an excluded interface is left alone, and nothing else. The
//! routes of the namespace decide, by length and metric, as they do for a packet.

use std::net::SocketAddr;
use std::time::Duration;

use harness::cli::Outcome;
use harness::{Family, Node, Pod, Process, Sidecar, kernel_test};

/// A pod with a second interface, eth1, whose other end does not answer.
fn pod_with_eth1(node: &Node) -> Pod {
    let pod = node.pod("client");
    pod.netns().ip("link add eth1 type veth peer name far1\n\
         link set far1 up\n\
         link set eth1 up\n\
         addr add 10.88.0.2/24 dev eth1\n\
         addr add fd88::2/64 dev eth1 nodad");
    pod
}

/// What a test dials with, and what must see or not see it.
struct Dialler {
    app: Process,
    sidecar: Sidecar,
}

impl Dialler {
    fn new(pod: &Pod) -> Dialler {
        Dialler { sidecar: pod.sidecar(), app: pod.app() }
    }

    #[track_caller]
    fn captured(&self, to: &str) {
        let to: SocketAddr = to.parse().expect("an address");
        let socket = self.app.connect(to).unwrap_or_else(|error| panic!("dial {to}: {error}"));
        assert_eq!(socket.seen().listener, 15001, "{to}");
        assert_eq!(self.sidecar.take_seen().len(), 1, "{to}");
    }

    #[track_caller]
    fn direct(&self, to: &str) {
        let to: SocketAddr = to.parse().expect("an address");
        let socket = self.app.tcp_nonblocking(Family::of(&to.ip()));
        let _ = socket.connect(to);
        // Long enough for the sidecar, which is in the same namespace.
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(self.sidecar.take_seen(), [], "{to} went to the sidecar");
    }
}

#[test]
fn a_narrow_route_of_another_interface_is_captured_inside_a_wide_excluded_one() {
    kernel_test(|node| {
        let pod = pod_with_eth1(node);
        pod.netns().ip("route add 10.0.0.0/8 via 10.88.0.1\n\
             route add fd00::/8 via fd88::1");
        node.attach(&pod, &["--exclude-interfaces", "eth1"]);
        let dial = Dialler::new(&pod);
        dial.captured("10.77.0.3:8080");
        dial.captured("[fd77::3]:8080");
        dial.captured("192.0.2.1:80");
        dial.direct("10.88.0.9:80");
        dial.direct("10.99.0.9:80");
        dial.direct("[fd88::9]:80");
        dial.direct("[fd99::9]:80");
    });
}

#[test]
fn the_default_route_through_an_excluded_interface_excludes() {
    kernel_test(|node| {
        let pod = pod_with_eth1(node);
        pod.netns().ip("route del default\n\
             route add default via 10.88.0.1\n\
             route del ::/0\n\
             route add ::/0 via fd88::1");
        node.attach(&pod, &["--exclude-interfaces", "eth1"]);
        let dial = Dialler::new(&pod);
        dial.direct("192.0.2.1:80");
        dial.direct("[2001:db8::1]:80");
        dial.captured("10.77.0.3:8080");
        dial.captured("[fd77::3]:8080");
    });
}

#[test]
fn the_lower_metric_of_two_default_routes_decides() {
    kernel_test(|node| {
        for (excluded, metric) in [(true, 1), (false, 4000)] {
            let pod = pod_with_eth1(node);
            pod.netns().ip(&format!(
                "route del default\n\
                 route add default via 10.77.0.1 metric 100\n\
                 route add default via 10.88.0.1 metric {metric}"
            ));
            node.attach(&pod, &["--exclude-interfaces", "eth1"]);
            let dial = Dialler::new(&pod);
            if excluded {
                dial.direct("192.0.2.1:80")
            } else {
                dial.captured("192.0.2.1:80")
            }
            drop(dial);
            node.detach(&pod);
            drop(pod);
        }
    });
}

#[test]
fn what_routes_cannot_say_is_refused_with_the_reason() {
    kernel_test(|node| {
        let pod = pod_with_eth1(node);
        pod.netns().ip("rule add from 10.88.0.2 lookup 100 priority 32000");
        let refused = Outcome::of(node.attach_command(&pod).args(["--exclude-interfaces", "eth1"]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for part in ["excludeInterfaces=\"eth1\"", "policy rule 32000", "table 100", "`ip rule`"] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
        assert_eq!(node.attached(), Vec::<String>::new());
        // Nothing is asked of the namespace's rules where no interface is excluded.
        node.attach(&pod, &[]);
        node.detach(&pod);
        pod.netns().ip("rule del priority 32000\n\
             route del default\n\
             route add default nexthop via 10.77.0.1 nexthop via 10.88.0.1");
        let refused = Outcome::of(node.attach_command(&pod).args(["--exclude-interfaces", "eth1"]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("0.0.0.0/0 leads through excluded interfaces"), "{refused:?}");
    });
}

#[test]
fn a_name_that_the_pod_does_not_have_is_accepted_and_shown() {
    kernel_test(|node| {
        let pod = node.pod("client");
        node.attach(&pod, &["--exclude-interfaces", "net1"]);
        let list = node.list();
        assert_eq!(list[0]["drift"], serde_json::json!([]), "{list}");
        let remark = list[0]["remarks"][0].as_str().unwrap_or_default();
        assert!(remark.contains("excludeInterfaces") && remark.contains("net1"), "{list}");
        let dial = Dialler::new(&pod);
        dial.captured("192.0.2.1:80");
    });
}
