//! Look-ups that come in between: a SYN is decided as its own pod's while a process in another pod asks
//! sock_diag, which runs that pod's programs, at real-time priority. Where the kernel is PREEMPT_RT the
//! process preempts a look-up between its two programs; elsewhere an interrupt may come into one of
//! sock_diag's.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{Family, Service, kernel_test};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::any;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`; `NLM_F_REQUEST` of `linux/netlink.h`.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;

/// The question which IPv4 TCP socket is at these ends: `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(own), SocketAddr::V4(peer)) = (own, peer) else { panic!("IPv4 is asked for") };
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(own.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    for ip in [own.ip(), peer.ip()] {
        body.extend(ip.octets());
        body.extend([0; 12]);
    }
    body.extend([0; 4]);
    body.extend([0xff; 8]);
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The highest priority that there is, where the process may have it.
fn become_urgent() {
    let parameters = libc::sched_param { sched_priority: 50 };
    // SAFETY: the call reads the struct; 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// Asks until it is told to stop, with pauses in which others go on; counts the answers.
fn ask(question: &[u8], stop: &AtomicBool, answers: &AtomicU64) {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
            .expect("a socket for sock_diag");
    let mut answer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..4 {
            sendto(socket.as_raw_fd(), question, &NetlinkAddr::new(0, 0), MsgFlags::empty())
                .expect("ask sock_diag");
            recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer of sock_diag");
            answers.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_micros(30));
    }
}

#[test]
fn a_syn_is_decided_as_its_own_pods() {
    const ROUNDS: usize = 40;
    const CONNECTIONS: usize = 500;
    kernel_test(|node| {
        let (pod, neighbour, other) = (node.pod("server"), node.pod("neighbour"), node.pod("client"));
        // The guard would decide again, by the interface on which the packet is.
        node.attach(&pod, &["--guard", "off"]);
        node.attach(&neighbour, &["--guard", "off", "--exclude-inbound-ports", "8080"]);
        let _sidecar = pod.sidecar();
        let (app, client) = (pod.app(), other.app());
        app.serve(&[any(Family::V4, 8080)], Service::Tell).unwrap();
        let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
        let question = question(pod.at(Family::V4, 8080), other.at(Family::V4, 40_000));
        // A guest without acceleration comes less far in this time.
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut opened = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                neighbour.netns().run(|| {
                    become_urgent();
                    ask(&question, &stop, &answers);
                });
            });
            for _ in (0..ROUNDS).take_while(|_| Instant::now() < deadline) {
                opened.push(client.open_many(&[pod.at(Family::V4, 8080)], CONNECTIONS));
                client.close_many();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let past = app.take_seen();
        assert_eq!(past, [], "connections that went past the sidecar, of {}", opened.len() * CONNECTIONS);
        assert!(opened.iter().all(|round| round.error.is_none()), "connections failed: {opened:?}");
        assert!(answers.load(Ordering::Relaxed) > 100, "the neighbour did ask");
    });
}
