//! The sidecar does not listen (yet): nothing leaves the pod in clear and nothing comes in, it is counted,
//! and it works as soon as the sidecar listens.

use harness::{Errno, Event, Family, Service, Sidecar, kernel_test};

use crate::{any, enrolled, far_away, localhost};

#[test]
fn outbound_is_refused_counted_and_works_later() {
    kernel_test(|node| {
        let (pod, server) = (enrolled(node, "pod"), node.pod("server"));
        let (app, peer) = (pod.app(), server.app());
        // A server that would answer if the connection left the pod.
        peer.serve(&Family::ALL.map(|family| any(family, 8080)), Service::Tell).unwrap();
        for family in Family::ALL {
            assert_eq!(app.connect(server.at(family, 8080)).map(drop), Err(Errno::ECONNREFUSED));
            let socket = app.tcp_nonblocking(family);
            let at_once = socket.connect(server.at(family, 8080));
            let outcome = if at_once == Err(Errno::EINPROGRESS) { socket.await_connect() } else { at_once };
            assert_eq!(outcome, Err(Errno::ECONNREFUSED));
        }
        assert_eq!(node.count(&pod, Event::NoListener), 4);
        let _sidecar = pod.sidecar();
        for family in Family::ALL {
            let seen = app.connect(server.at(family, 8080)).unwrap().seen();
            assert_eq!((seen.listener, seen.original_dst), (15001, Ok(server.at(family, 8080))));
        }
        assert_eq!(node.count(&pod, Event::NoListener), 4);
        assert_eq!(peer.take_seen(), []);
    });
}

#[test]
fn inbound_is_refused_counted_and_works_later() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let (app, client) = (pod.app(), other.app());
        // An application that would answer if the connection reached it.
        app.serve(&Family::ALL.map(|family| any(family, 8080)), Service::Tell).unwrap();
        for family in Family::ALL {
            assert_eq!(client.connect(pod.at(family, 8080)).map(drop), Err(Errno::ECONNREFUSED));
        }
        assert_eq!(node.count(&pod, Event::InboundRefused), 2);
        let _sidecar = pod.sidecar();
        for family in Family::ALL {
            let seen = client.connect(pod.at(family, 8080)).unwrap().seen();
            assert_eq!((seen.listener, seen.original_dst), (15006, Ok(pod.at(family, 8080))));
        }
        assert_eq!(node.count(&pod, Event::InboundRefused), 2);
        assert_eq!(app.take_seen(), []);
    });
}

#[test]
fn both_ways_again_when_the_sidecar_is_gone_and_comes_back() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let (app, client) = (pod.app(), other.app());
        for round in 0..3 {
            let sidecar = pod.sidecar();
            for family in Family::ALL {
                assert_eq!(app.connect(far_away(family, 80)).unwrap().seen().listener, 15001);
                assert_eq!(client.connect(pod.at(family, 80)).unwrap().seen().listener, 15006);
            }
            drop(sidecar);
            for family in Family::ALL {
                assert_eq!(
                    app.connect(far_away(family, 80)).map(drop),
                    Err(Errno::ECONNREFUSED),
                    "round {round}"
                );
                assert_eq!(
                    client.connect(pod.at(family, 80)).map(drop),
                    Err(Errno::ECONNREFUSED),
                    "round {round}"
                );
            }
        }
    });
}

#[test]
fn the_application_works_with_itself_meanwhile() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let app = pod.app();
        for family in Family::ALL {
            app.serve(&[any(family, 8080)], Service::Tell).unwrap();
            assert_eq!(app.connect(localhost(family, 8080)).unwrap().seen().listener, 8080);
        }
    });
}

#[test]
fn a_sidecar_of_one_family_serves_that_family() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let (app, proxy) = (pod.app(), pod.proxy());
        proxy.serve(&[any(Family::V4, 15001)], Service::Tell).unwrap();
        assert_eq!(app.connect(far_away(Family::V4, 80)).unwrap().seen().listener, 15001);
        assert_eq!(app.connect(far_away(Family::V6, 80)).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(node.count(&pod, Event::NoListener), 1);
    });
}

#[test]
fn a_sidecar_older_than_its_pods_enrolment_serves_from_the_start() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        let _sidecar = Sidecar::builder(&pod).start();
        node.attach(&pod, &[]);
        for family in Family::ALL {
            assert_eq!(pod.app().connect(far_away(family, 80)).unwrap().seen().listener, 15001);
        }
    });
}
