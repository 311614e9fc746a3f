//! What is not there yet at ADD, or not for good: tentative addresses, IPv6 that is off on `lo`, addresses
//! and interfaces that come later, a loopback interface that goes down and up.

use std::net::SocketAddr;
use std::time::Duration;

use harness::cli::Outcome;
use harness::{Errno, Family, Node, Pod, Service, kernel_test};
use serde_json::Value;

use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

const EXCLUDE_NET1: [(&str, &str); 1] = [("traffic.sidecar.istio.io/excludeInterfaces", "net1")];

fn v6_only_by_hand(pod: &Pod) {
    pod.netns().ip(&format!("addr del {}/64 dev eth0", pod.ip6()));
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What `list` says about the one attachment.
fn drift(node: &Node) -> Vec<String> {
    let list = node.list();
    serde_json::from_value(list[0]["drift"].clone()).unwrap_or_else(|error| panic!("{error}: {list}"))
}

fn remarks(node: &Node) -> String {
    let list = node.list();
    list[0]["remarks"]
        .as_array()
        .map_or(String::new(), |all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "))
}

fn net1(pod: &Pod) {
    pod.netns().ip("link add net1 type veth peer name far1\n\
         link set far1 up\n\
         link set net1 up\n\
         addr add 10.99.0.2/24 dev net1");
}

#[test]
fn a_tentative_address_is_the_clients_as_soon_as_it_is_valid() {
    kernel_test(|node| {
        let pod = node.pod("web");
        v6_only_by_hand(&pod);
        pod.netns().ip(&format!("addr add {}/64 dev eth0", pod.ip6()));
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // Captured at once; the client's address may be another one for a moment.
        let seen = app.connect(at("[2001:db8::10]:80")).unwrap().seen();
        assert_eq!((seen.listener, seen.original_dst), (15001, Ok(at("[2001:db8::10]:80"))));
        let show = || pod.netns().output_of(std::process::Command::new("ip").args(["-6", "addr", "show"]));
        for _ in 0..100 {
            if !show().contains("tentative") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let seen = app.connect(at("[2001:db8::11]:80")).unwrap().seen();
        assert_eq!(seen.client.ip(), pod.ip(Family::V6));
        assert_eq!(drift(node), Vec::<String>::new());
        sandbox.check().success();
        let seen = app.connect(at("[2001:db8::12]:80")).unwrap().seen();
        assert_eq!(seen.client.ip(), pod.ip(Family::V6));
        sandbox.del();
        assert_nothing_attached(node);
        let routes = pod
            .netns()
            .output_of(std::process::Command::new("ip").args(["-6", "route", "show", "table", "all"]));
        assert!(!routes.contains("fd72:6564"), "{routes}");
    });
}

#[test]
fn without_ipv6_on_lo_the_pod_starts_and_the_sysctl_is_named() {
    kernel_test(|node| {
        let pod = node.pod("web");
        pod.netns().sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let reply = sandbox.call("ADD").run();
        reply.success();
        assert!(reply.stderr.contains("net.ipv6.conf.lo.disable_ipv6"), "{reply:?}");
        assert!(remarks(node).contains("net.ipv6.conf.lo.disable_ipv6 is 1"), "{}", remarks(node));
        let _sidecar = pod.sidecar();
        let app = pod.app();
        let to = at("192.0.2.10:80");
        assert_eq!(app.connect(to).unwrap().seen().original_dst, Ok(to));
        // IPv6 cannot reach the sidecar over lo, and goes nowhere else.
        let socket = app.tcp_nonblocking(Family::V6);
        let _ = socket.connect(at("[2001:db8::10]:80"));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(socket.peername(), Err(Errno::ENOTCONN));
        // Once the sysctl is right, CHECK brings IPv6 in.
        pod.netns().sysctl("net/ipv6/conf/lo/disable_ipv6", "0");
        assert!(!drift(node).is_empty());
        sandbox.check().success();
        assert_eq!((drift(node), remarks(node)), (vec![], String::new()));
        assert_redirected(&app);
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn inbound_ipv6_works_for_an_address_that_comes_after_add() {
    kernel_test(|node| {
        let (pod, peer) = (node.pod("web"), node.pod("peer"));
        v6_only_by_hand(&pod);
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let proxy = pod.proxy();
        // ::6 is there before any address is.
        proxy.tcp(Family::V6).bind(at("[::6]:0")).unwrap();
        let _sidecar = pod.sidecar();
        pod.netns().ip(&format!("addr add {}/64 dev eth0 nodad", pod.ip6()));
        assert_eq!(peer.app().connect(pod.at(Family::V6, 8080)).unwrap().seen().listener, 15006);
        let told = drift(node);
        assert!(
            told.iter().any(|what| what.contains(&format!("the address {} came after ADD", pod.ip6()))),
            "{told:?}"
        );
        sandbox.check().success();
        assert_eq!(drift(node), Vec::<String>::new());
        // Now it is the pod's own address and the clients' address.
        let app = pod.app();
        let server = pod.app();
        server.serve(&[at("[::]:8080")], Service::Tell).unwrap();
        assert_eq!(app.connect(pod.at(Family::V6, 8080)).unwrap().seen().listener, 8080);
        let seen = app.connect(at("[2001:db8::10]:80")).unwrap().seen();
        assert_eq!((seen.listener, seen.client.ip()), (15001, pod.ip(Family::V6)));
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn the_kernels_own_link_local_address_is_no_drift() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        pod.netns().ip("addr add fe80::77/64 dev eth0 nodad");
        assert_eq!(drift(node), Vec::<String>::new());
        pod.netns().ip("addr add 10.99.0.9/32 dev eth0");
        assert_eq!(drift(node).len(), 1, "others are: {:?}", drift(node));
        // Both are taken in together.
        sandbox.check().success();
        pod.netns().ip("addr del fe80::77/64 dev eth0");
        assert_eq!(drift(node), Vec::<String>::new());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn an_excluded_interface_that_comes_after_add_is_excluded_by_the_next_call() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee").annotated(&EXCLUDE_NET1);
        sandbox.add();
        assert!(remarks(node).contains("net1"), "{}", remarks(node));
        let sidecar = pod.sidecar();
        let app = pod.app();
        net1(&pod);
        let told = drift(node).join("; ");
        for part in ["10.99.0.2 came after ADD", "an interface of", "the routes through"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        // As Multus does: an ADD for the interface, and nothing else is called.
        let other = sandbox.clone().ifname("net1");
        other.add();
        assert_eq!((drift(node), remarks(node)), (vec![], String::new()));
        for verb in [&sandbox, &other] {
            verb.check().success();
        }
        let socket = app.tcp_nonblocking(Family::V4);
        let _ = socket.connect(at("10.99.0.9:9000"));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(sidecar.take_seen(), [], "it leaves by net1");
        assert_eq!(app.connect(at("192.0.2.10:80")).unwrap().seen().listener, 15001);
        // It goes again, and a route that cannot be followed comes.
        pod.netns().ip("link del net1");
        assert!(!drift(node).is_empty());
        sandbox.check().success();
        pod.netns().ip("rule add from 10.77.0.2 lookup 100 priority 32000");
        assert!(remarks(node).contains("policy rule 32000"), "{}", remarks(node));
        sandbox.check().success();
        other.del();
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn lo_down_and_up_is_seen_and_mended() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let _sidecar = pod.sidecar();
        let app = pod.app();
        assert_redirected(&app);
        pod.netns().ip("link set lo down\nlink set lo up");
        let told = drift(node).join("; ");
        // The kernel keeps IPv4's local routes.
        for part in ["::6 is not on lo", &format!("address {} is missing", pod.ip6())] {
            assert!(told.contains(part), "{part}: {told}");
        }
        sandbox.check().success();
        assert_eq!(drift(node), Vec::<String>::new());
        for to in ["192.0.2.10:80", "[2001:db8::10]:80"] {
            let seen = app.connect(at(to)).unwrap().seen();
            assert_eq!((seen.listener, seen.client.ip()), (15001, pod.ip(Family::of(&at(to).ip()))));
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_pod_whose_lo_is_down_is_refused_with_the_reason() {
    kernel_test(|node| {
        let pod = node.pod("web");
        pod.netns().ip("link set lo down");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let details = sandbox.call("ADD").run().refused(105);
        assert!(details.contains("lo must be up"), "{details}");
        assert_nothing_attached(node);
        pod.netns().ip("link set lo up");
        sandbox.add();
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_repeated_add_and_a_repair_get_by_without_what_has_gone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        v6_only_by_hand(&pod);
        pod.netns().sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
        // The route's source and ::6 cannot be added again.
        sandbox.call("ADD").run().success();
        assert_eq!(drift(node), Vec::<String>::new());
        let repaired = Outcome::of(node.redirect().arg("repair"));
        assert_eq!(repaired.code, Some(0), "{repaired:?}");
        let _sidecar = pod.sidecar();
        let to = at("192.0.2.10:80");
        assert_eq!(pod.app().connect(to).unwrap().seen().original_dst, Ok(to));
        sandbox.del();
        assert_nothing_attached(node);
    });
}
