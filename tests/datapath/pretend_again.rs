//! A socket of the sidecar that pretends, and whose way to the application is not the usual one: a connect
//! that failed before, one that was dissolved, a client that is gone before it is accepted, a full backlog,
//! an upgrade or a detach while it waits.

use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Errno, Family, kernel_test};

use crate::pretend::{of_one_family, pretender};
use crate::tproxy::{client, refused_at_first, tproxy};
use crate::{any, passthrough};

#[test]
fn a_second_connect_tells_the_same_client() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let (socket, listener) = refused_at_first(node, &pod, &app, &proxy, family);
            // Dissolved, the socket keeps the address that it was bound to.
            socket.dissolve().unwrap();
            socket.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(listener.accept().unwrap().peername().map(|peer| peer.ip()), Ok(client(family).ip()));
            assert_eq!((node.clients(), node.claims(&pod).clients), (vec![], 0));
        }
    });
}

#[test]
fn a_client_that_ends_before_it_is_accepted_leaves_nothing() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            let gone = pretender(&proxy, &pod, client(family)).unwrap();
            gone.send(b"last words").unwrap();
            drop(gone);
            let stays = pretender(&proxy, &pod, client(family));
            let accepted = listener.accept().unwrap();
            assert_eq!(accepted.peername(), Ok(client(family)), "it is the first one's");
            assert_eq!(stays.map(drop), Ok(()), "the next one with its address");
            assert_eq!((node.clients(), node.claims(&pod).clients), (vec![], 0));
        }
    });
}

#[test]
fn an_upgrade_and_a_detach_do_not_mix_up_clients_that_wait() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = of_one_family(&app, family);
            listener.bind(any(family, 8080)).unwrap();
            listener.listen().unwrap();
            let _waits = pretender(&proxy, &pod, client(family)).unwrap();
            let upgraded = Outcome::of(node.redirect().arg("upgrade"));
            assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
            assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)), "after an upgrade");
            let _waits = pretender(&proxy, &pod, client(family)).unwrap();
            let plain = proxy.tcp(family);
            plain.bind(passthrough(family)).unwrap();
            plain.connect(pod.at(family, 8080)).unwrap();
            node.detach(&pod);
            // Without us the kernel's own answer; attached again, a new client is told, and no old one.
            assert_eq!(
                listener.accept().unwrap().peername().map(|peer| peer.ip()),
                Ok(passthrough(family).ip())
            );
            node.attach(&pod, &["--interception-mode", "TPROXY"]);
            assert_eq!(listener.accept().unwrap().peername(), Ok(plain.sockname()));
            let _new = pretender(&proxy, &pod, client(family)).unwrap();
            assert_eq!(listener.accept().unwrap().peername(), Ok(client(family)), "attached again");
            assert_eq!((node.clients(), node.claims(&pod).clients), (vec![], 0));
        }
    });
}

#[test]
fn in_every_mode_of_the_guard_the_client_is_told() {
    kernel_test(|node| {
        for mode in ["enforce", "audit", "off"] {
            let pod = node.pod(mode);
            node.attach(&pod, &["--interception-mode", "TPROXY", "--guard", mode]);
            let (app, proxy) = (pod.app(), pod.proxy());
            for family in Family::ALL {
                let listener = app.listen(any(family, 8080)).unwrap();
                for _ in 0..2 {
                    let socket = pretender(&proxy, &pod, client(family)).unwrap();
                    let accepted = listener.accept().unwrap();
                    assert_eq!(accepted.peername(), Ok(client(family)), "{mode}");
                    accepted.send(b"answer").unwrap();
                    drop(socket);
                }
            }
        }
    });
}

#[test]
fn a_full_backlog_loses_no_client_and_keeps_none() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        pod.netns().sysctl("net/core/somaxconn", "2");
        for family in Family::ALL {
            let listener = app.listen(any(family, 8080)).unwrap();
            let sockets: Vec<_> = (0..12_u16)
                .map(|number| {
                    let socket = proxy.tcp_nonblocking(family);
                    crate::tproxy::ask(&socket, family).unwrap();
                    let from = std::net::SocketAddr::new(client(family).ip(), 43_000 + number);
                    socket.bind(from).unwrap();
                    let begun = socket.connect(pod.at(family, 8080));
                    assert!(matches!(begun, Ok(()) | Err(Errno::EINPROGRESS)), "{begun:?}");
                    socket
                })
                .collect();
            // Three fit; those that were dropped come again after a second, two, four.
            let mut told: Vec<_> =
                (0..6).map(|_| listener.accept().unwrap().peername().unwrap().port()).collect();
            told.sort_unstable();
            told.dedup();
            assert!(told.len() == 6 && told.iter().all(|port| (43_000..43_012).contains(port)), "{told:?}");
            drop(sockets);
            drop(listener);
            // Some have ended for the sidecar, and may still be accepted: they are known until a reset comes.
            let deadline = Instant::now() + Duration::from_secs(20);
            while !node.clients().is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!((node.clients(), node.claims(&pod).clients), (vec![], 0), "{family:?}");
        }
    });
}
