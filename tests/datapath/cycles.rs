//! Attach and detach, thousands of times: the node must be as it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use harness::{Family, Node, Pod, Process, Residue, Service, kernel_test};
use redirect_user::attach::{self, Request};
use redirect_user::ids::AttachmentId;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::{Policy, Ports};

use crate::any;

/// By the library, as the plugin does it, without the start of a process each time.
const CYCLES: u32 = 10_000;

/// Everything on the node that attach touches, except what the kernel frees later.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    files: BTreeSet<String>,
    map_entries: Vec<(&'static str, usize)>,
    addresses: String,
    routes: String,
    descriptors: usize,
}

impl Footprint {
    fn of(node: &Node, pod: &Pod) -> Footprint {
        let mut files = BTreeSet::new();
        for dir in [node.bpffs(), &node.state_dir()] {
            walk(dir, &mut files);
        }
        let ip = |arguments: &[&str]| {
            let text = pod.netns().output_of(Command::new("ip").args(arguments));
            // Link-local addresses and multicast routes come some time after the interface.
            text.lines().filter(|line| !line.contains("fe80:") && !line.contains("ff00:")).collect::<String>()
        };
        Footprint {
            files,
            map_entries: node.map_entries(),
            addresses: ip(&["-o", "address", "show"]),
            routes: ip(&["route", "show", "table", "all"]) + &ip(&["-6", "route", "show", "table", "all"]),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

fn walk(dir: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        }
        files.insert(path.display().to_string());
    }
}

/// Where a connection of the pod to a server outside ends up.
fn listener(app: &Process, to: std::net::SocketAddr) -> u16 {
    app.connect(to).unwrap().seen().listener
}

#[test]
fn ten_thousand_cycles_leave_the_node_as_it_was() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("pod"), node.pod("server"));
        let (app, peer, _sidecar) = (pod.app(), server.app(), pod.sidecar());
        peer.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let to = server.at(Family::V4, 8080);
        // The first one installs the programs, which stay. This one stays attached too, as on a real node:
        // where a hook has no program on the whole machine, the kernel patches its code with the first and
        // with the last.
        let neighbour = node.pod("neighbour");
        node.attach(&neighbour, &[]);
        let (footprint, kernel) = (Footprint::of(node, &pod), Residue::now());

        let here = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let request = request(&pod);
        let begin = Instant::now();
        for cycle in 0..CYCLES {
            let lock = NodeLock::acquire(&here).unwrap();
            attach::attach(&here, &lock, &request)
                .unwrap_or_else(|error| panic!("cycle {cycle}: attach: {error}"));
            if cycle % 1000 == 0 {
                assert_eq!(listener(&app, to), 15001, "cycle {cycle}, attached");
            }
            attach::detach(&here, &lock, pod.name(), None)
                .unwrap_or_else(|error| panic!("cycle {cycle}: detach: {error}"));
            if cycle % 1000 == 0 {
                assert_eq!(listener(&app, to), 8080, "cycle {cycle}, detached");
            }
        }
        println!("{CYCLES} cycles of attach and detach in {:?}", begin.elapsed());
        assert_eq!(Footprint::of(node, &pod), footprint);
        assert_eq!(kernel.left_over(), [""; 0]);
    });
}

/// A policy with entries in every map.
fn request(pod: &Pod) -> Request {
    let policy = Policy {
        exclude_outbound_ip_ranges: vec![
            "198.51.100.0/24".parse().unwrap(),
            "2001:db8:5::/48".parse().unwrap(),
        ],
        exclude_outbound_ports: [15020, 3306].into(),
        include_inbound_ports: Ports::All,
        ..Policy::default()
    };
    Request {
        id: AttachmentId { container_id: pod.name().to_owned(), ifname: "eth0".to_owned() },
        cgroup: pod.cgroup().to_owned(),
        netns: pod.netns().path().to_owned(),
        policy,
        pod: None,
        network: None,
        addresses: vec![pod.ip4().into(), pod.ip6().into()],
        made_cgroups: Vec::new(),
    }
}

#[test]
fn two_hundred_cycles_of_the_tool() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &[]);
        node.detach(&pod);
        let (footprint, kernel) = (Footprint::of(node, &pod), Residue::now());
        let begin = Instant::now();
        for _ in 0..200 {
            node.attach(&pod, &["--exclude-outbound-ip-ranges", "198.51.100.0/24,2001:db8:5::/48"]);
            node.detach(&pod);
        }
        println!("200 cycles of the tool in {:?}", begin.elapsed());
        assert_eq!(Footprint::of(node, &pod), footprint);
        assert_eq!(kernel.left_over(), [""; 0]);
    });
}

#[test]
fn pods_that_vanish_without_detach_take_their_links_along() {
    kernel_test(|node| {
        let stays = node.pod("stays");
        node.attach(&stays, &[]);
        let kernel = Residue::now();
        for round in 0..20 {
            let pod = node.pod(&format!("vanishes-{round}"));
            node.attach(&pod, &[]);
            let _sidecar = pod.sidecar();
            assert_eq!(listener(&pod.app(), crate::far_away(Family::V4, 80)), 15001);
        }
        for round in 0..20 {
            let id = format!("vanishes-{round}");
            let outcome = harness::cli::Outcome::of(node.redirect().args(["detach", "--id", &id]));
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
        }
        assert_eq!(node.attached(), ["stays"]);
        assert_eq!(node.map_entries()[0], ("PODS", 1));
        assert_eq!(kernel.left_over(), [""; 0]);
    });
}
