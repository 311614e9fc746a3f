//! A network inside the pod, as docker-in-docker makes it: a bridge, a namespace behind it, MASQUERADE
//! outwards and a published port inwards. No socket of the pod is part of that traffic.

use std::process::Command;
use std::time::Duration;

use harness::netns::NetNs;
use harness::{Event, Family, Process, Service, User, kernel_test};

use crate::{PORT, Scene, any, bound_by_the_guard, dial};

/// Where the inner namespace is, and the ports that the pod publishes for it.
const INNER: [&str; 2] = ["172.17.0.2", "fd17::2"];
const PUBLISHED: u16 = 9090;
const PUBLISHED_TOO: u16 = 9091;

/// Makes the inner namespace and a process in it that serves on port 8088.
fn nested(scene: &Scene<'_>) -> (NetNs, Process) {
    let pod = scene.pod.netns();
    let inner = NetNs::create(scene.node.dir().join("netns/inner"));
    pod.ip(&format!(
        "link add docker0 type bridge\n\
         addr add 172.17.0.1/16 dev docker0\n\
         addr add fd17::1/64 dev docker0 nodad\n\
         link set docker0 up\n\
         link add inside type veth peer name outside\n\
         link set inside netns {}\n\
         link set outside master docker0 up",
        inner.path().display()
    ));
    inner.ip("link set inside name eth0\n\
         addr add 172.17.0.2/16 dev eth0\n\
         addr add fd17::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 172.17.0.1\n\
         route add ::/0 via fd17::1");
    pod.sysctl("net/ipv4/ip_forward", "1");
    pod.sysctl("net/ipv6/conf/all/forwarding", "1");
    for (tool, source, to) in [
        ("iptables", "172.17.0.0/16", format!("{}:8088", INNER[0])),
        ("ip6tables", "fd17::/64", format!("[{}]:8088", INNER[1])),
    ] {
        let rules = format!(
            "{tool} -w -t nat -A POSTROUTING -s {source} -j MASQUERADE && \
             {tool} -w -t nat -A PREROUTING -i eth0 -p tcp --dport {PUBLISHED}:{PUBLISHED_TOO} -j DNAT --to-destination {to}"
        );
        let _ = pod.output_of(Command::new("sh").args(["-c", &rules]));
    }
    let process = Process::start("inner", &inner, &scene.pod.container("docker"), User::APP);
    process.serve(&Family::ALL.map(|family| any(family, 8088)), Service::Tell).expect("serve");
    (inner, process)
}

#[test]
fn without_the_guard_both_directions_are_open() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--guard", "off"]);
        let (_netns, inner) = nested(&scene);
        for family in Family::ALL {
            assert_eq!(dial(&inner, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
            assert_eq!(
                dial(&scene.server, scene.pod.at(family, PUBLISHED)).map(|seen| seen.listener),
                Ok(8088)
            );
        }
    });
}

#[test]
fn outwards_it_is_refused_and_inwards_it_gets_nothing() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let (_netns, inner) = nested(&scene);
        for family in Family::ALL {
            // The reset finds its way back through connection tracking.
            assert_eq!(
                dial(&inner, scene.peer.at(family, PORT)).map(|seen| seen.listener),
                Err(harness::Errno::ECONNREFUSED)
            );
            assert!(dial(&scene.server, scene.pod.at(family, PUBLISHED)).is_err());
        }
        assert_eq!(inner.take_seen(), [], "the inner server got a connection");
        scene.assert_nothing_in_clear(&scene.tap.take(Duration::from_millis(50)));
        // Where the SYN that comes in can be bound nothing answers it; its sender repeats it until then.
        let counted = node.count(&scene.pod, Event::GuardForwarded);
        if bound_by_the_guard().is_ok() {
            assert_eq!(counted, 2)
        } else {
            assert!(counted >= 4, "{counted}")
        }
        // The pod itself is as it was.
        for family in Family::ALL {
            assert_eq!(dial(&scene.app, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(15001));
            assert_eq!(dial(&scene.server, scene.pod.at(family, PORT)).map(|seen| seen.listener), Ok(15006));
        }
    });
}

#[test]
fn what_the_policy_leaves_alone_is_forwarded() {
    kernel_test(|node| {
        let scene =
            Scene::new(node, &["--exclude-outbound-ports", "8080", "--exclude-inbound-ports", "9090"]);
        let (_netns, inner) = nested(&scene);
        for family in Family::ALL {
            assert_eq!(dial(&inner, scene.peer.at(family, PORT)).map(|seen| seen.listener), Ok(PORT));
            assert_eq!(
                dial(&scene.server, scene.pod.at(family, PUBLISHED)).map(|seen| seen.listener),
                Ok(8088)
            );
        }
        assert_eq!(crate::guarded(node, &scene.pod), 0);
    });
}

#[test]
fn with_all_pins_gone_too() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        let (_netns, inner) = nested(&scene);
        node.unmount_bpffs();
        harness::await_no_links();
        for family in Family::ALL {
            assert!(dial(&inner, scene.peer.at(family, PORT)).is_err());
            assert!(dial(&scene.server, scene.pod.at(family, PUBLISHED)).is_err());
        }
        assert_eq!(inner.take_seen(), []);
        scene.assert_nothing_in_clear(&scene.tap.take(Duration::from_millis(50)));
    });
}

/// The filter for arriving packets is taken off, as a process with NET_ADMIN in the pod can.
#[test]
fn what_answers_behind_the_pod_is_not_heard() {
    kernel_test(|node| {
        let scene = Scene::new(node, &["--exclude-inbound-ports", "9091"]);
        let (_netns, inner) = nested(&scene);
        let remove = "filter del dev eth0 ingress";
        let _ = scene.pod.netns().output_of(Command::new("tc").args(remove.split(' ')));
        for family in Family::ALL {
            assert!(dial(&scene.server, scene.pod.at(family, PUBLISHED)).is_err());
        }
        assert_eq!(inner.take_seen(), [], "the inner server got a connection");
        let answers =
            scene.tap.take(Duration::from_millis(50)).into_iter().filter(harness::Captured::is_syn_ack);
        assert_eq!(answers.collect::<Vec<_>>(), []);
        assert!(node.count(&scene.pod, Event::GuardForwarded) >= 2);
        // What the policy leaves alone is answered.
        for family in Family::ALL {
            let seen = dial(&scene.server, scene.pod.at(family, PUBLISHED_TOO));
            assert_eq!(seen.map(|seen| seen.listener), Ok(8088));
        }
    });
}
