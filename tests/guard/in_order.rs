//! With everything in order the guard refuses nothing: what the policy leaves alone passes, by each
//! reason, and so does what is older than the guard.

use std::fs;

use harness::netns::NetNs;
use harness::{Family, Process, Service, User, kernel_test};

use crate::{PORT, Scene, any, dial, guarded};

#[test]
fn the_way_there_and_back() {
    kernel_test(|node| {
        let scene = Scene::new(node, &[]);
        for _ in 0..3 {
            scene.assert_in_order();
        }
    });
}

#[test]
fn what_the_policy_lets_pass() {
    kernel_test(|node| {
        let excluded =
            "--exclude-outbound-ports=9001 --include-outbound-ports=9003 --exclude-inbound-ports=9002";
        let flags: Vec<&str> =
            excluded.split(' ').chain(["--include-outbound-ip-ranges", "192.0.2.0/24"]).collect();
        let scene = Scene::new(node, &flags);
        for process in [&scene.app, &scene.server] {
            for family in Family::ALL {
                process
                    .serve(&[any(family, 9001), any(family, 9002), any(family, 9003)], Service::Tell)
                    .unwrap();
            }
        }
        let by_gid = scene.pod.process("istio-proxy", User { uid: 1000, gid: 1337 });
        let by_uid = scene.pod.process("istio-proxy", User { uid: 1337, gid: 1000 });
        for family in Family::ALL {
            for (who, port) in [(&scene.app, 9001), (&scene.app, 9002), (&by_gid, 9003), (&by_uid, 9003)] {
                assert_eq!(dial(who, scene.peer.at(family, port)).map(|seen| seen.listener), Ok(port));
            }
            assert_eq!(dial(&scene.app, scene.peer.at(family, 9003)).map(|seen| seen.listener), Ok(15001));
            assert_eq!(dial(&scene.server, scene.pod.at(family, 9002)).map(|seen| seen.listener), Ok(9002));
            // Its own addresses, over lo.
            assert_eq!(dial(&scene.app, scene.pod.at(family, 9001)).map(|seen| seen.listener), Ok(9001));
            assert_eq!(dial(&by_uid, scene.pod.at(family, 9003)).map(|seen| seen.listener), Ok(15006));
            // From an address and a port that the application has chosen.
            let bound = scene.app.tcp(family);
            bound.bind(scene.pod.at(family, 0)).unwrap();
            bound.connect(scene.peer.at(family, 9001)).unwrap();
            assert_eq!(bound.seen().listener, 9001);
        }
        assert_eq!(guarded(node, &scene.pod), 0);
    });
}

#[test]
fn a_connection_that_is_older_than_the_guard() {
    kernel_test(|node| {
        let wire = node.new_wire("guarded");
        let (pod, peer) = (wire.pod("pod"), wire.pod("peer"));
        let (app, server) = (pod.app(), peer.app());
        for process in [&app, &server] {
            process.serve(&Family::ALL.map(|family| any(family, PORT)), Service::Echo).unwrap();
        }
        let open: Vec<_> = Family::ALL
            .iter()
            .flat_map(|family| [app.connect(peer.at(*family, PORT)), server.connect(pod.at(*family, PORT))])
            .map(|socket| socket.expect("connect before the pod is attached"))
            .collect();
        node.attach(&pod, &[]);
        // Attached again, as a repair does it.
        node.attach(&pod, &[]);
        for socket in &open {
            socket.expect_echo(b"still here");
        }
        assert_eq!(guarded(node, &pod), 0);
        node.detach(&pod);
        for socket in &open {
            socket.expect_echo(b"and still");
        }
    });
}

#[test]
fn a_port_that_comes_back_from_time_wait() {
    kernel_test(|node| {
        let wire = node.new_wire("guarded");
        let (pod, peer) = (wire.pod("pod"), wire.pod("peer"));
        node.attach(&pod, &[]);
        let (proxy, client, app) = (pod.proxy(), peer.app(), pod.app());
        app.serve(&Family::ALL.map(|family| any(family, PORT)), Service::Tell).unwrap();
        for family in Family::ALL {
            let before = guarded(node, &pod);
            let listener = proxy.listen(any(family, 15006)).unwrap();
            let once = || {
                let socket = client.tcp(family);
                socket.set_option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
                socket.bind(peer.at(family, 41_000)).unwrap();
                let connected = socket.connect(pod.at(family, PORT));
                (socket, connected)
            };
            let again = |expected: bool| {
                let (socket, connected) = once();
                if expected {
                    connected.unwrap();
                    // The side that closes first keeps TIME_WAIT: the sidecar's.
                    drop(listener.accept().unwrap());
                    let end = socket.receive(1).unwrap();
                    assert!(end.data.is_empty());
                }
            };
            for _ in 0..3 {
                again(true);
            }
            assert_eq!(guarded(node, &pod), before);
            // And when the program that steers is gone, the port does not come back to the application.
            crate::faults::end_inbound(node);
            let (_socket, connected) = once();
            assert_eq!(connected, Err(harness::Errno::ECONNREFUSED));
            assert_eq!(app.take_seen(), []);
            node.attach(&pod, &[]);
        }
    });
}

#[test]
fn a_pod_with_users_of_its_own() {
    kernel_test(|node| {
        const FIRST: u32 = 200_000;
        let of_pod = |uid: u32| User { uid: FIRST + uid, gid: FIRST + uid };
        let wire = node.new_wire("guarded");
        let peer = wire.pod("peer");
        let server = peer.app();
        server.serve(&[any(Family::V4, PORT)], Service::Tell).unwrap();
        let cgroup = node.cgroup().join("users");
        fs::create_dir(&cgroup).unwrap();
        let netns = NetNs::create_for_users(node.dir().join("users"), FIRST);
        wire.netns().ip(&format!(
            "link add users type veth peer name inner\nlink set users master br0 up\nlink set inner netns {}",
            netns.path().display()
        ));
        netns.ip("link set inner name eth0\n\
             addr add 10.77.0.99/16 dev eth0\n\
             link set eth0 up\n\
             route add default via 10.77.0.1");
        let mut attach = node.redirect();
        attach.args(["attach", "--id", "users", "--cgroup"]).arg(&cgroup).arg("--netns").arg(netns.path());
        let outcome = harness::cli::Outcome::of(&mut attach);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");

        let start = |cgroup: &std::path::Path, user| Process::start("process", &netns, cgroup, user);
        let listener = |process: &Process| dial(process, peer.at(Family::V4, PORT)).map(|seen| seen.listener);
        assert_eq!(listener(&start(&cgroup, of_pod(1337))), Ok(PORT), "the sidecar");
        // Outside the cgroup only the guard decides.
        let elsewhere = node.pod("elsewhere");
        let outside = elsewhere.container("app");
        assert_eq!(listener(&start(&outside, of_pod(1337))), Ok(PORT), "the sidecar, elsewhere");
        let refused = Err(harness::Errno::ECONNREFUSED);
        assert_eq!(listener(&start(&outside, of_pod(1000))), refused, "an application");
        assert_eq!(
            listener(&start(&outside, User::PROXY)),
            refused,
            "the machine's uid 1337 is not in the pod"
        );
    });
}
