//! One pod takes no room that belongs to the others: large policies are small in the maps, and what cannot be
//! small has a limit for each pod, with an error that names it.

use std::collections::BTreeMap;

use harness::{Family, Node, kernel_test};
use serde_json::json;

use crate::call::{Call, Place, STATUS, hand_over};
use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

/// A list of 49,000 ports: every third one is left out, so that it is not one run.
fn many_ports() -> String {
    let ports = (1..=65_535_u32).filter(|port| port % 4 != 0).take(49_000);
    ports.map(|port| port.to_string()).collect::<Vec<_>>().join(",")
}

fn entries(node: &Node) -> BTreeMap<&'static str, usize> {
    node.map_entries().into_iter().collect()
}

#[test]
fn forty_nine_thousand_ports_in_an_annotation_are_no_problem() {
    kernel_test(|node| {
        let ports = many_ports();
        let annotations = [
            ("traffic.sidecar.istio.io/includeInboundPorts", &*ports),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", &*ports),
        ];
        let pods: Vec<_> = (0..3).map(|number| node.pod(&format!("big{number}"))).collect();
        let sandboxes: Vec<_> = (0..3)
            .map(|n| Sandbox::new(node, &pods[n], &format!("big{n}")).annotated(&annotations))
            .collect();
        for sandbox in &sandboxes {
            sandbox.add();
        }
        let full = entries(node);
        assert!(full["SETS"] == 0 && full["PORTS"] <= 3 * 64, "{full:?}");
        // An ordinary pod finds room.
        let plain = node.pod("plain");
        let sandbox = Sandbox::new(node, &plain, "plain");
        sandbox.add();
        let _sidecar = plain.sidecar();
        assert_redirected(&plain.app());
        sandbox.del();
        // The policy is carried out: a port of the list, and the next one that is not.
        let _sidecar = pods[0].sidecar();
        let app = pods[0].app();
        let peer = node.pod("peer");
        for (port, captured) in [(40_000, true), (40_001, false)] {
            let server = peer.app();
            server.serve(&[format!("0.0.0.0:{port}").parse().unwrap()], harness::Service::Tell).unwrap();
            let seen = app.connect(peer.at(Family::V4, port)).unwrap().seen();
            assert_eq!(seen.listener == 15001, captured, "{port}: {seen:?}");
        }
        for sandbox in &sandboxes {
            sandbox.check().success();
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

#[test]
fn a_list_that_is_too_long_is_refused_with_pod_annotation_and_limit() {
    let place = Place::new();
    let mut conf = place.conf();
    for (annotation, item, count, limit) in [
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8", 32_769, "at most 32768"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8", 40_000, "at most 32768"),
        ("traffic.sidecar.istio.io/excludeInterfaces", "net1", 65, "at most 64"),
    ] {
        let value = vec![item; count].join(",");
        hand_over(&mut conf, &[STATUS, (annotation, &value)]);
        let details = Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string()).run().refused(101);
        for part in ["pod shop/web-0", annotation, &count.to_string(), limit] {
            assert!(details.contains(part), "{part}: {details}");
        }
    }
}

#[test]
fn a_full_map_says_which_how_full_and_whose_entries_they_are() {
    kernel_test(|node| {
        let (web, other) = (node.pod("web"), node.pod("other"));
        let big = Sandbox::new(node, &web, "big")
            .annotated(&[("traffic.sidecar.istio.io/excludeInterfaces", "net1")]);
        big.add();
        node.fill_own_addresses(node.list()[0]["cookie"].as_u64().expect("a cookie"));
        let sandbox = Sandbox::new(node, &other, "c0ffee");
        let details = sandbox.call("ADD").run().refused(105);
        for part in ["OWN", "is full", "65536 of 65536", "E2BIG", "shop/web-0"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        assert_eq!(node.attached(), ["big"]);
        big.del();
        node.empty_own_addresses();
        sandbox.add();
        sandbox.del();
        let left = entries(node);
        assert!(left.values().all(|count| *count == 0), "{left:?}");
    });
}

#[test]
fn a_record_is_as_small_as_what_it_says() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let all: Vec<_> = (1..=49_000).map(|port| port.to_string()).collect();
        let sandbox = Sandbox::new(node, &pod, "c0ffee")
            .annotated(&[("traffic.sidecar.istio.io/excludeOutboundPorts", &all.join(","))]);
        sandbox.add();
        let policy = node.list()[0]["policy"].clone();
        assert_eq!(policy["excludeOutboundPorts"], json!(["1-49000"]));
        sandbox.del();
        // Ranges that are not neighbours: what the pod says, two quotation marks for each, and little else.
        let all: Vec<_> = (0..20_000).map(|n| format!("10.{}.{}.{}/32", n >> 8, n & 255, n % 253)).collect();
        let said = all.join(",");
        let sandbox = Sandbox::new(node, &pod, "c0ffee")
            .annotated(&[("traffic.sidecar.istio.io/excludeOutboundIPRanges", &said)]);
        sandbox.add();
        let record = node.state_dir().join("attachments/c0ffee.eth0.json");
        let size = std::fs::metadata(record).expect("the record").len();
        let allowed = said.len() + 2 * all.len() + 4096;
        assert!(usize::try_from(size).is_ok_and(|size| size < allowed), "{size} bytes, {} said", said.len());
        sandbox.del();
    });
}
