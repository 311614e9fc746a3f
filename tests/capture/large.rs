//! Policies without small limits.

use std::net::{Ipv4Addr, SocketAddr};

use harness::{Family, Sidecar, kernel_test};
use redirect_user::attach::{Request, attach};
use redirect_user::ids::AttachmentId;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::Policy;

use crate::output;

/// 10,000 excluded ranges, IPv4 and IPv6, and 1,000 ports: an address inside one is direct, its neighbour is
/// not, and detach leaves no entry behind. (Through the library: the list is longer than one argument of a
/// command may be.)
#[test]
fn ten_thousand_excluded_ranges() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let v4 = (0..8_000_u32).map(|n| format!("100.{}.{}.0/26", n >> 8, n & 0xff));
        let v6 = (0..2_000_u32).map(|n| format!("2001:db8:{n:x}::/48"));
        let policy = Policy {
            exclude_outbound_ip_ranges: v4.chain(v6).map(|range| range.parse().unwrap()).collect(),
            exclude_outbound_ports: (20_000..21_000).collect(),
            ..Policy::default()
        };
        let ours = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let request = Request {
            id: AttachmentId { container_id: pod.name().into(), ifname: "eth0".into() },
            cgroup: pod.cgroup().into(),
            netns: pod.netns().path().into(),
            policy,
            pod: None,
            network: None,
            addresses: Vec::new(),
            made_cgroups: Vec::new(),
        };
        attach(&ours, &NodeLock::acquire(&ours).unwrap(), &request).unwrap();
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // What an operator reads of it fits a screen, and says how much there is.
        let shown = output(node.redirect().args(["show", pod.name()]));
        assert!(shown.contains("(10000 in all; `--output json` shows them)"), "{shown}");
        assert!(shown.lines().count() < 80 && shown.lines().all(|line| line.len() < 300), "{shown}");
        for inside in ["100.0.0.1:80", "100.31.63.62:80", "[2001:db8:7cf::1]:80", "192.0.2.1:20999"] {
            let explained = output(node.redirect().args(["explain", pod.name(), "--dst", inside]));
            assert!(explained.starts_with("direct"), "{inside}: {explained}");
            // No server is there: what matters is that the sidecar does not answer.
            let socket = app.tcp_nonblocking(if inside.starts_with('[') { Family::V6 } else { Family::V4 });
            let _ = socket.connect(inside.parse().unwrap());
        }
        for outside in ["100.0.0.65:80", "100.32.0.1:80", "[2001:db8:7d0::1]:80", "192.0.2.1:21000"] {
            let outside = outside.parse().unwrap();
            assert_eq!(app.connect(outside).unwrap().seen().original_dst, Ok(outside));
        }
        assert_eq!(node.count(&pod, harness::Event::ExcludedDirect), 4);
        node.detach(&pod);
        for (map, entries) in node.map_entries() {
            assert_eq!(entries, 0, "{map}");
        }
    });
}

/// A pod that dials thousands of destinations, more than are listed at once, leaves none of them behind.
#[test]
fn thousands_of_destinations() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &[]);
        let sidecar = Sidecar::builder(&pod).workers(2).start();
        let app = pod.app();
        let to: Vec<SocketAddr> =
            (0..6_000_u32).map(|n| SocketAddr::new(Ipv4Addr::from(0x6440_0000 | n).into(), 80)).collect();
        let opened = app.open_many(&to, to.len());
        assert_eq!((opened.count, opened.error), (to.len(), None));
        app.close_many();
        assert!(node.entries_of("DESTINATIONS") > 4_500, "{}", node.entries_of("DESTINATIONS"));
        assert_eq!(node.count(&pod, harness::Event::HandoffMissing), 0);
        drop(sidecar);
        node.detach(&pod);
        assert_eq!(node.entries_of("DESTINATIONS"), 0);
    });
}
