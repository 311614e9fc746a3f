//! Ways to connect that are not the ordinary one: MPTCP, TCP Fast Open, io_uring, a socket from another
//! process, users of another user namespace. None of them is a way around the sidecar.

use std::path::Path;
use std::process::Command;

use harness::{Event, Family, Pod, Seen, Service, User, kernel_test};

use crate::{in_pod, output};

const FAR: &str = "192.0.2.10:80";
const FAR6: &str = "[2001:db8::10]:80";

fn oddity(pod: &Pod, user: User, arguments: &[&str]) -> String {
    output(in_pod(pod, Path::new(&harness::binary("pod-oddities")), user).args(arguments))
}

fn meant_for(seen: &[Seen], to: &str) {
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].original_dst, Ok(to.parse().expect("an address")));
    assert_eq!(seen[0].listener, 15001);
}

#[test]
fn mptcp_goes_to_the_sidecar_like_tcp() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("pod"), node.pod("server"));
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        let real = server.app();
        real.serve(&[server.at(Family::V4, 8080)], Service::Tell).unwrap();
        let to = server.at(Family::V4, 8080).to_string();
        for to in [FAR, &to] {
            oddity(&pod, User::APP, &["mptcp", to]);
            meant_for(&sidecar.take_seen(), to);
        }
        assert_eq!(real.take_seen(), [], "the connection went around the sidecar");
    });
}

/// The sidecar listened before the pod was attached: only the kernel knows where.
#[test]
fn mptcp_takes_the_detour_like_tcp() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let sidecar = harness::Sidecar::builder(&pod).localhost().start();
        node.attach(&pod, &[]);
        oddity(&pod, User::APP, &["mptcp", FAR]);
        let seen = sidecar.take_seen();
        meant_for(&seen, FAR);
        assert_eq!(seen[0].client.ip(), pod.ip(Family::V4));
    });
}

#[test]
fn fast_open_when_the_sidecar_does_not_offer_it() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        for to in [FAR, FAR6] {
            oddity(&pod, User::APP, &["fastopen", to]);
            meant_for(&sidecar.take_seen(), to);
        }
    });
}

#[test]
fn fast_open_when_the_sidecar_offers_it() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        // Both sides, without cookies, for every listener.
        pod.netns().sysctl("net/ipv4/tcp_fastopen", "1027");
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        for to in [FAR, FAR6] {
            oddity(&pod, User::APP, &["fastopen", to]);
            meant_for(&sidecar.take_seen(), to);
        }
        assert_eq!(node.handshakes(), []);
    });
}

#[test]
fn connect_through_io_uring() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        if oddity(&pod, User::APP, &["io-uring", FAR]).contains("not available") {
            return;
        }
        meant_for(&sidecar.take_seen(), FAR);
    });
}

#[test]
fn a_socket_passed_to_another_process_is_judged_by_who_connects() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        // Made by uid 0, connected by uid 1000.
        let mut command = Command::new(harness::binary("pod-oddities"));
        pod.netns().enter(&mut command, Some(&pod.container("app")));
        output(command.args(["pass-socket", FAR, "1000"]));
        meant_for(&sidecar.take_seen(), FAR);
        assert_eq!(node.count(&pod, Event::ProxyDirect), 0);
    });
}

/// `connect` goes by the real ids of the caller, iptables and the guard by the file system's ids of the
/// socket's maker, which follow the effective ones. What is the sidecar's by one of the two only does not get
/// out.
#[test]
fn half_a_proxy_does_not_get_out() {
    kernel_test(|node| {
        let (pod, server) = (node.pod("pod"), node.pod("server"));
        node.attach(&pod, &[]);
        let sidecar = pod.sidecar();
        let real = server.app();
        real.serve(&Family::ALL.map(|family| server.at(family, 8080)), Service::Tell).unwrap();
        for family in Family::ALL {
            let to = server.at(family, 8080).to_string();
            let dial = |real: &str, effective: &str| {
                let mut command = Command::new(harness::binary("pod-oddities"));
                pod.netns().enter(command.args(["ids", real, effective, &to]), Some(pod.cgroup()));
                command.output().expect("start pod-oddities")
            };
            let output = dial("0", "1337");
            assert!(output.status.success(), "{output:?}");
            meant_for(&sidecar.take_seen(), &to);
            let refused = node.count(&pod, Event::GuardOutbound);
            let output = dial("1337", "0");
            assert!(!output.status.success(), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("Connection refused"), "{output:?}");
            assert_eq!(node.count(&pod, Event::GuardOutbound), refused + 1);
            assert_eq!((sidecar.take_seen().len(), real.take_seen().len()), (0, 0));
            // Both are the sidecar's: it is the sidecar.
            let output = dial("1337", "1337");
            assert!(output.status.success(), "{output:?}");
            assert_eq!((sidecar.take_seen().len(), real.take_seen().len()), (0, 1));
        }
    });
}
