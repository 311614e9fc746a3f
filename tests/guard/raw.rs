//! Packets as no kernel would write them, sent by raw sockets in a pod, and frames by packet sockets on the
//! wire.

use std::net::{IpAddr, SocketAddr};

use harness::netns::NetNs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, sendto, socket};

/// `IPPROTO_TCP`, `IPPROTO_RAW` and headers of IPv6.
pub(crate) const TCP: u8 = 6;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// The source port of every packet written here.
pub(crate) const SOURCE_PORT: u16 = 40_404;

/// A TCP header with SYN, and with its checksum.
pub(crate) fn syn(src: IpAddr, dst: SocketAddr) -> Vec<u8> {
    segment(src, dst, 0x02)
}

/// The header of a segment in the middle of a connection: with ACK and PSH.
pub(crate) fn late(src: IpAddr, dst: SocketAddr) -> Vec<u8> {
    segment(src, dst, 0x18)
}

fn segment(src: IpAddr, dst: SocketAddr, tcp_flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(SOURCE_PORT.to_be_bytes());
    segment.extend(dst.port().to_be_bytes());
    segment.extend(1_u32.to_be_bytes());
    segment.extend(0_u32.to_be_bytes());
    segment.extend([5 << 4, tcp_flags]);
    segment.extend(64_000_u16.to_be_bytes());
    segment.extend([0; 4]);
    let mut pseudo = octets(src);
    pseudo.extend(octets(dst.ip()));
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend(u32::from(TCP).to_be_bytes());
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An IPv4 packet; `fragment` is the field of flags and offset, `options` are as many bytes as they are.
pub(crate) fn ipv4(src: IpAddr, dst: IpAddr, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = 20 + options.len();
    let mut packet = vec![0x40 | (length / 4) as u8, 0];
    packet.extend(((length + payload.len()) as u16).to_be_bytes());
    packet.extend(0x1234_u16.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, TCP, 0, 0]);
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet whose first header is `next`.
pub(crate) fn ipv6(src: IpAddr, dst: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend(payload);
    packet
}

/// An extension header of eight bytes with padding (`PadN`), in front of `payload`.
pub(crate) fn extended(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0, 1, 4, 0, 0, 0, 0];
    bytes.extend(payload);
    bytes
}

/// A fragment header, `offset` in bytes, in front of `payload`.
pub(crate) fn fragment6(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend(0x1234_5678_u32.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Sends a packet with its IP header from a pod.
pub(crate) fn send(netns: &NetNs, dst: IpAddr, packet: &[u8]) -> nix::Result<usize> {
    const IPPROTO_RAW: i32 = 255;
    netns.run(|| {
        let family = if dst.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let raw = raw_socket(family, IPPROTO_RAW);
        let to = SockaddrStorage::from(SocketAddr::new(dst, 0));
        sendto(std::os::fd::AsRawFd::as_raw_fd(&raw), packet, &to, MsgFlags::empty())
    })
}

/// `nix` knows raw sockets of some protocols only.
fn raw_socket(family: AddressFamily, protocol: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd as _;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes three numbers.
    let fd = unsafe { libc::socket(family as i32, kind, protocol) };
    assert!(fd >= 0, "open a raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

/// Sends a frame from an interface of a namespace by a packet socket, as a neighbour on the wire would.
pub(crate) fn send_frame(netns: &NetNs, interface: &str, frame: &[u8]) {
    send_frame_on(netns, interface, frame, false);
}

/// The same, past traffic control where `bypass` says so (`PACKET_QDISC_BYPASS`).
pub(crate) fn send_frame_on(netns: &NetNs, interface: &str, frame: &[u8], bypass: bool) {
    netns.run(|| {
        let packet = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .expect("open a packet socket");
        let on = i32::from(bypass);
        // SAFETY: the value is an integer of the size that is told.
        let set = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&packet),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert!(set == 0, "PACKET_QDISC_BYPASS: {}", std::io::Error::last_os_error());
        let index = nix::net::if_::if_nametoindex(interface).expect("the interface is there");
        let mut address = [0_u8; 20];
        address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
        address[4..8].copy_from_slice(&(index as i32).to_ne_bytes());
        address[11] = 6;
        address[12..18].copy_from_slice(&frame[..6]);
        // SAFETY: both pointers lead to so many bytes; the address is a `sockaddr_ll`.
        let sent = unsafe {
            libc::sendto(
                std::os::fd::AsRawFd::as_raw_fd(&packet),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                address.as_ptr().cast(),
                address.len() as u32,
            )
        };
        // ENOBUFS is what a packet socket is told of a frame that a filter dropped.
        let dropped = sent < 0 && nix::errno::Errno::last() == nix::errno::Errno::ENOBUFS;
        assert!(dropped || sent == frame.len() as isize, "{}", std::io::Error::last_os_error());
    });
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The checksum of IP, TCP and UDP (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
