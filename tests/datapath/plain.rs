//! Without us: what the harness makes works as a pod does, and the kernel answers as the other tests assume.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};

use harness::{Errno, Family, Level, Service, kernel_test};

use crate::{any, far_away, localhost, mapped, passthrough};

#[test]
fn pods_reach_each_other_by_both_families() {
    kernel_test(|node| {
        let (client, server) = (node.pod("client"), node.pod("server"));
        let (app, peer) = (client.app(), server.app());
        for family in Family::ALL {
            peer.serve(&[any(family, 8080)], Service::Tell).unwrap();
            let socket = app.connect(server.at(family, 8080)).unwrap();
            let seen = socket.seen();
            assert_eq!(seen.client, socket.sockname());
            assert_eq!(seen.client.ip(), client.ip(family));
            assert_eq!(seen.local, server.at(family, 8080));
            assert_eq!(socket.peername(), Ok(server.at(family, 8080)));
        }
    });
}

#[test]
fn a_process_has_the_ids_and_the_cgroup_of_its_container() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let proxy = pod.proxy();
        proxy.serve(&[localhost(Family::V4, 15000)], Service::Tell).unwrap();
        let proc = format!("/proc/{}", proxy.pid());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        assert!(status.contains("Uid:\t1337\t1337\t1337\t1337\n"), "{status}");
        assert!(status.contains("Gid:\t1337\t1337\t1337\t1337\n"), "{status}");
        let cgroup = std::fs::read_to_string(format!("{proc}/cgroup")).unwrap();
        let container = pod.container("istio-proxy");
        let below_mount = container.strip_prefix(node.cgroup().parent().unwrap()).unwrap();
        assert!(cgroup.contains(&format!("0::/{}\n", below_mount.display())), "{cgroup}");
    });
}

#[test]
fn nobody_answers_for_an_address_far_away() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let app = pod.app();
        for family in Family::ALL {
            let socket = app.tcp_nonblocking(family);
            assert_eq!(socket.connect(far_away(family, 80)), Err(Errno::EINPROGRESS));
            // Long enough for an answer from inside this machine; then the gateway's "no route", or nothing.
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(socket.peername(), Err(Errno::ENOTCONN));
        }
    });
}

#[test]
fn a_socket_may_connect_again_after_it_was_refused() {
    kernel_test(|node| {
        let (client, server) = (node.pod("client"), node.pod("server"));
        let (app, peer) = (client.app(), server.app());
        for family in Family::ALL {
            peer.serve(&[any(family, 8080)], Service::Tell).unwrap();
            let socket = app.tcp(family);
            assert_eq!(socket.connect(server.at(family, 8081)), Err(Errno::ECONNREFUSED));
            assert_eq!(socket.connect(server.at(family, 8080)), Ok(()));
            assert_eq!(socket.seen().local, server.at(family, 8080));
        }
    });
}

#[test]
fn mapped_sockets_and_bound_sockets_work() {
    kernel_test(|node| {
        let (client, server) = (node.pod("client"), node.pod("server"));
        let (app, peer) = (client.app(), server.app());
        peer.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let socket = app.tcp(Family::V6);
        socket.bind(any(Family::V6, 40000)).unwrap();
        socket.connect(mapped(server.at(Family::V4, 8080))).unwrap();
        assert_eq!(socket.seen().client, client.at(Family::V4, 40000));
        assert_eq!(socket.peername(), Ok(mapped(server.at(Family::V4, 8080))));
        let local = app.listen(localhost(Family::V4, 9000)).unwrap();
        let from_6 = app.tcp(Family::V4);
        from_6.bind(passthrough(Family::V4)).unwrap();
        from_6.connect(localhost(Family::V4, 9000)).unwrap();
        assert_eq!(local.accept().unwrap().peername(), Ok(from_6.sockname()));
    });
}

#[test]
fn the_kernel_does_not_know_an_original_destination() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let app = pod.app();
        for family in Family::ALL {
            let listener = app.listen(localhost(family, 9000)).unwrap();
            let _client = app.connect(localhost(family, 9000)).unwrap();
            let accepted = listener.accept().unwrap();
            for level in Level::ALL {
                // ENOENT where connection tracking is loaded and did not see the connection.
                let answer = accepted.original_dst(level);
                assert!(
                    matches!(answer, Err(Errno::ENOPROTOOPT | Errno::ENOENT | Errno::EOPNOTSUPP)),
                    "{answer:?}"
                );
            }
        }
    });
}

#[test]
fn datagrams_travel() {
    kernel_test(|node| {
        let (client, server) = (node.pod("client"), node.pod("server"));
        for family in Family::ALL {
            let (mine, theirs) = (client.app().udp(family), server.app().udp(family));
            theirs.bind(any(family, 5353)).unwrap();
            mine.send_to(b"ping", server.at(family, 5353)).unwrap();
            let datagram = theirs.receive(100).unwrap();
            assert_eq!(datagram.data, b"ping");
            assert_eq!(datagram.from.unwrap().ip(), client.ip(family));
        }
    });
}

#[test]
fn what_a_test_leaves_behind_fails_it() {
    let left = std::cell::RefCell::new(std::path::PathBuf::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        kernel_test(|node| {
            // Beside the node's branch, where the node does not tidy up.
            let path = node.cgroup().with_file_name("redirect-test-left-behind");
            std::fs::create_dir(&path).unwrap();
            left.replace(path);
        });
    }));
    // Another kernel test that waits for the machine's lock may have swept it away already.
    let removed = std::fs::remove_dir(left.take());
    assert!(removed.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NotFound), "{removed:?}");
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("directory") && message.contains("redirect-test-left-behind"), "{message}");
}
