//! SO_ORIGINAL_DST: the answer for the sidecar's connections with every size of buffer at both levels, and
//! the kernel's own answer, untouched, for everybody else's.

use std::net::SocketAddr;

use harness::protocol::{OptionBytes, UNTOUCHED, decode_sockaddr};
use harness::{Errno, Family, Level, Pod, Process, Socket, kernel_test};

use crate::{any, enrolled, far_away, localhost};

const SIZES: [u32; 4] = [16, 28, 32, 128];
/// Sizes of `sockaddr_in` and `sockaddr_in6`.
const SIZE4: u32 = 16;
const SIZE6: u32 = 28;

/// A whole address, the right length, and not a byte written behind it.
fn is_exactly(answer: &OptionBytes, address: SocketAddr) {
    let size = if address.is_ipv6() { SIZE6 } else { SIZE4 };
    assert_eq!(answer.len, size, "{answer:?}");
    assert_eq!(decode_sockaddr(&answer.buffer), Some(address));
    let (written, rest) = answer.buffer.split_at(size as usize);
    assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "{answer:?}");
    // sin_zero; sin6_flowinfo and sin6_scope_id
    let zero = if address.is_ipv6() {
        [&written[4..8], &written[24..28]]
    } else {
        [&written[8..12], &written[12..16]]
    };
    assert_eq!(zero, [&[0; 4], &[0; 4]]);
}

fn level_of(family: Family) -> Level {
    if family == Family::V6 { Level::Ipv6 } else { Level::Ip }
}

/// The sidecar's end of a connection that `app` makes to `to`.
fn accepted(listener: &Socket, app: &Process, to: SocketAddr) -> (Socket, Socket) {
    let client = app.connect(to).unwrap();
    (client, listener.accept().unwrap())
}

/// All answers to the question on a socket: both levels, all sizes.
fn answers(socket: &Socket) -> Vec<Result<OptionBytes, Errno>> {
    let sizes = [0, 4, 15, 16, 27, 28, 32, 128, 5000];
    Level::ALL.iter().flat_map(|level| sizes.map(|size| socket.original_dst_bytes(*level, size))).collect()
}

#[test]
fn buffers_of_all_sizes_outbound() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let listener = proxy.listen(any(family, 15001)).unwrap();
            let (_client, socket) = accepted(&listener, &app, far_away(family, 80));
            check_sizes(&socket, family, far_away(family, 80));
        }
    });
}

#[test]
fn buffers_of_all_sizes_inbound() {
    kernel_test(|node| {
        let (pod, other) = (enrolled(node, "pod"), node.pod("other"));
        let (client, proxy) = (other.app(), pod.proxy());
        for family in Family::ALL {
            let listener = proxy.listen(any(family, 15006)).unwrap();
            let (_client, socket) = accepted(&listener, &client, pod.at(family, 8080));
            check_sizes(&socket, family, pod.at(family, 8080));
        }
    });
}

fn check_sizes(socket: &Socket, family: Family, to: SocketAddr) {
    for size in SIZES {
        let answer = socket.original_dst_bytes(level_of(family), size);
        if family == Family::V6 && size < SIZE6 {
            assert_eq!(answer, Err(Errno::EINVAL), "{size} bytes");
        } else {
            is_exactly(&answer.unwrap(), to);
        }
    }
    for size in [0, 4, 15] {
        assert_eq!(socket.original_dst_bytes(level_of(family), size), Err(Errno::EINVAL), "{size} bytes");
    }
    // A buffer that does not fit into the page that a program may see.
    is_exactly(&socket.original_dst_bytes(level_of(family), 5000).unwrap(), to);
}

#[test]
fn the_level_of_the_other_family_gets_the_kernels_own_answer() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        for family in Family::ALL {
            let wrong = if family == Family::V4 { Level::Ipv6 } else { Level::Ip };
            let (app, proxy) = (ours.app(), ours.proxy());
            let listener = proxy.listen(any(family, 15001)).unwrap();
            let (_client, redirected) = accepted(&listener, &app, far_away(family, 80));
            let (_, untouched, _process) = loopback(&plain, family, 15001);
            for size in SIZES {
                assert_eq!(
                    redirected.original_dst_bytes(wrong, size),
                    untouched.original_dst_bytes(wrong, size),
                    "{family:?}, {size} bytes"
                );
            }
        }
    });
}

/// Both ends of a connection over loopback, in this order: the dialling one, the accepted one.
fn loopback(pod: &Pod, family: Family, port: u16) -> (Socket, Socket, Process) {
    let process = pod.app();
    let listener = process.listen(any(family, port)).unwrap();
    let (client, server) = accepted(&listener, &process, localhost(family, port));
    (client, server, process)
}

#[test]
fn sockets_that_are_not_ours_are_answered_as_in_a_pod_that_is_not_enrolled() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        for family in Family::ALL {
            // The application's connection to itself.
            let (mine, theirs) = (loopback(&ours, family, 8080), loopback(&plain, family, 8080));
            assert_eq!(answers(&mine.0), answers(&theirs.0), "dialling end, {family:?}");
            assert_eq!(answers(&mine.1), answers(&theirs.1), "accepted end, {family:?}");
        }
    });
}

#[test]
fn the_application_does_not_see_the_answer_on_its_own_redirected_socket() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        let _sidecar = ours.sidecar();
        for family in Family::ALL {
            let redirected = ours.app().connect(far_away(family, 80)).unwrap();
            let (untouched, _, _process) = loopback(&plain, family, 8080);
            assert_eq!(answers(&redirected), answers(&untouched));
        }
    });
}

#[test]
fn a_listening_and_a_fresh_socket_have_no_answer() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        for family in Family::ALL {
            let (mine, theirs) = (ours.proxy(), plain.proxy());
            let at = any(family, 15001);
            assert_eq!(answers(&mine.listen(at).unwrap()), answers(&theirs.listen(at).unwrap()));
            assert_eq!(answers(&mine.tcp(family)), answers(&theirs.tcp(family)));
            assert_eq!(answers(&mine.udp(family)), answers(&theirs.udp(family)));
        }
    });
}

#[test]
fn other_options_are_untouched() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        let options = [
            (libc::SOL_SOCKET, libc::SO_TYPE, 4),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL, 128),
            (libc::SOL_SOCKET, libc::SO_DOMAIN, 4),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4),
            (libc::SOL_IP, libc::IP_TTL, 4),
            // Neighbours of SO_ORIGINAL_DST: same number at another level, other numbers at its level.
            (libc::SOL_SOCKET, libc::SO_ORIGINAL_DST, 128),
            (libc::IPPROTO_TCP, libc::SO_ORIGINAL_DST, 128),
            (libc::SOL_IP, 81, 128),
            (libc::SOL_IP, 64, 128),
            // A buffer larger than the page that a program may see.
            (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 9000),
        ];
        for family in Family::ALL {
            let (mine, theirs) = (loopback(&ours, family, 8080), loopback(&plain, family, 8080));
            for (level, name, size) in options {
                let [a, b] = [&mine.1, &theirs.1].map(|socket| socket.option(level, name, size));
                assert_eq!(a, b, "level {level}, option {name}, {size} bytes");
            }
            // Its numbers differ from run to run, its length must not.
            let [a, b] =
                [&mine.1, &theirs.1].map(|s| s.option(libc::IPPROTO_TCP, libc::TCP_INFO, 512).unwrap());
            assert_eq!(a.len, b.len);
            assert!(a.len > 200, "tcp_info has {} bytes", a.len);
        }
    });
}

#[test]
fn an_answer_longer_than_a_page_is_not_cut_off() {
    kernel_test(|node| {
        let (ours, plain) = (enrolled(node, "ours"), node.pod("plain"));
        let [mine, theirs] = [&ours, &plain].map(source_filter);
        assert_eq!(mine, theirs);
        assert!(mine.len > 4096, "{} bytes", mine.len);
    });
}

/// A multicast source filter (`struct ip_msfilter`) with 2,000 sources, written and read back. The only
/// option of an ordinary socket with an answer of any length.
fn source_filter(pod: &Pod) -> OptionBytes {
    const SOURCES: u32 = 2000;
    const INCLUDE: u32 = 1;
    pod.netns().sysctl("net/ipv4/igmp_max_msf", &SOURCES.to_string());
    let process = pod.app();
    let socket = process.udp(Family::V4);
    let group = [[239, 1, 1, 1], [127, 0, 0, 1]].concat();
    pod.netns().ip("route add 239.0.0.0/8 dev lo");
    socket.set_option_bytes(libc::SOL_IP, libc::IP_ADD_MEMBERSHIP, &group).unwrap();
    let mut filter = [group, INCLUDE.to_ne_bytes().to_vec(), SOURCES.to_ne_bytes().to_vec()].concat();
    filter.extend((0..SOURCES).flat_map(|number| (0x0a00_0000 + number).to_be_bytes()));
    socket.set_option_bytes(libc::SOL_IP, libc::IP_MSFILTER, &filter).unwrap();
    filter[16..].fill(UNTOUCHED);
    socket.option_with(libc::SOL_IP, libc::IP_MSFILTER, filter).unwrap()
}
