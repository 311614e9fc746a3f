//! A recorder on the wire: what frames a namespace really sees, and who sent which bytes in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use crate::netns::NetNs;

/// A recorder of every frame that the interfaces of a namespace send and receive.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

/// A TCP segment or a UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Who sent it.
    pub src: SocketAddr,
    /// Where it went.
    pub dst: SocketAddr,
    /// The flags of TCP; `None` for UDP.
    pub flags: Option<u8>,
    /// What it carried.
    pub payload: Vec<u8>,
}

/// `SYN` and `SYN | ACK`
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const HANDSHAKE: u8 = 0x12;

impl Captured {
    /// Whether it asks for a connection.
    #[must_use]
    pub fn is_syn(&self) -> bool {
        self.flags.is_some_and(|flags| flags & HANDSHAKE == SYN)
    }

    /// Whether it grants one.
    #[must_use]
    pub fn is_syn_ack(&self) -> bool {
        self.flags.is_some_and(|flags| flags & HANDSHAKE == SYN_ACK)
    }
}

impl Tap {
    /// Begins to record. The namespace should be one that the pod under test does not share: what a pod's own
    /// filters drop is not seen there.
    #[must_use]
    pub fn on(netns: &NetNs) -> Tap {
        let socket = netns.run(|| {
            socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
        });
        Tap { socket: socket.expect("open a packet socket") }
    }

    /// Whether such a segment or datagram is seen, now or within ten seconds. What was recorded before it is
    /// gone then.
    #[must_use]
    pub fn sees(&self, is_meant: impl Fn(&Captured) -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.take(Duration::from_millis(5)).iter().any(&is_meant) {
                return true;
            }
        }
        false
    }

    /// What was recorded since this was asked last, and for `patience` longer: TCP and UDP over IP. Fragments
    /// that are not the first are left out. A bridge shows a frame once for each of its ports and itself.
    #[must_use]
    pub fn take(&self, patience: Duration) -> Vec<Captured> {
        std::thread::sleep(patience);
        let mut buffer = vec![0; 70_000];
        let mut captured = Vec::new();
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            captured.extend(parse(&buffer[..length]));
        }
        captured
    }
}

/// An Ethernet frame, with or without a VLAN tag.
fn parse(frame: &[u8]) -> Option<Captured> {
    let (mut protocol, mut packet) = (be16(frame, 12)?, frame.get(14..)?);
    while protocol == 0x8100 || protocol == 0x88a8 {
        (protocol, packet) = (be16(packet, 2)?, packet.get(4..)?);
    }
    match protocol {
        0x0800 => {
            let length = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(be16(packet, 2)?);
            if be16(packet, 6)? & 0x1fff != 0 {
                return None;
            }
            let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            transport(*packet.get(9)?, packet.get(length..total)?, [ip(12)?.into(), ip(16)?.into()])
        }
        0x86dd => {
            let total = 40 + usize::from(be16(packet, 4)?);
            let ip = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            let ends = [ip(8)?.into(), ip(24)?.into()];
            let (mut next, mut at) = (*packet.get(6)?, 40);
            while matches!(next, 0 | 43 | 44 | 60) {
                let length = if next == 44 { 8 } else { (usize::from(*packet.get(at + 1)?) + 1) * 8 };
                (next, at) = (*packet.get(at)?, at + length);
            }
            transport(next, packet.get(at..total)?, ends)
        }
        _ => None,
    }
}

fn transport(protocol: u8, segment: &[u8], [src, dst]: [IpAddr; 2]) -> Option<Captured> {
    let (src, dst) = (SocketAddr::new(src, be16(segment, 0)?), SocketAddr::new(dst, be16(segment, 2)?));
    let (flags, header) = match protocol {
        6 => (Some(*segment.get(13)?), usize::from(segment.get(12)? >> 4) * 4),
        17 => (None, 8),
        _ => return None,
    };
    Some(Captured { src, dst, flags, payload: segment.get(header..)?.to_vec() })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
