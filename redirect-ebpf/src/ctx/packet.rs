//! The context of a clsact filter: what of a packet opens a connection, and what can be done with it.
//!
//! What goes on with a connection is recognised in the frame itself. Other headers are read by
//! `bpf_skb_load_bytes_relative()`: it finds them in paged and in segmented packets alike, and from the
//! network header on, which is also where it is for interfaces without a link layer (tun).

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_hdr_start_off::{BPF_HDR_START_MAC, BPF_HDR_START_NET};
use aya_ebpf::bindings::{__sk_buff, BPF_TCP_LISTEN, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_uid, bpf_sk_fullsock, bpf_skb_load_bytes_relative};
use aya_ebpf::programs::TcContext;
use redirect_common::decide::DNS_PORT;
use redirect_common::{Endpoint, Ip, in_prefix6, role};

use super::{TCP, UDP, origin};

/// `ETH_P_IP`, `ETH_P_IPV6`, `ETH_P_8021Q` and `ETH_P_8021AD` of `linux/if_ether.h`, as they lie in memory.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
const VLAN: u32 = 0x8100_u16.to_be() as u32;
const SERVICE_VLAN: u32 = 0x88a8_u16.to_be() as u32;

/// Next headers of IPv6 that lead to another one: `linux/in6.h`.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More extension headers than this are taken for an attempt to hide what follows.
const MOST_EXTENSIONS: u32 = 8;

/// More fragments follow, or this one is not the first: `IP_MF` and `IP_OFFSET` of `net/ip.h`, as they lie in
/// memory.
const MORE_OR_LATER: u16 = 0x3fff_u16.to_be();

/// The flags of a TCP header.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// `SOCK_RAW`
const SOCK_RAW: u32 = 3;

/// `struct iphdr`
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// `struct ipv6hdr`
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6Header {
    version_and_class: u32,
    payload_length: u16,
    next: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// `struct frag_hdr`
#[repr(C)]
#[derive(Clone, Copy)]
struct FragmentHeader {
    next: u8,
    reserved: u8,
    fragment: u16,
    id: u32,
}

/// `struct tcphdr`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TcpHeader {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) offset: u8,
    pub(super) flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// `struct udphdr`
#[repr(C)]
#[derive(Clone, Copy)]
struct UdpHeader {
    source: u16,
    destination: u16,
    length: u16,
    checksum: u16,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Out of the pod.
    Out,
    /// Into the pod.
    In,
}

/// What the guard has to judge about a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A SYN without ACK.
    Syn,
    /// A SYN with ACK that is forwarded out of the pod: something behind the pod, and no socket of it,
    /// answers a SYN. That came in by this interface, if both ways are the same.
    ForwardedAnswer,
    /// A DNS question, or a datagram for an address that does not exist outside the pod.
    Question,
    /// A fragment, or a chain of headers, that keeps the header of TCP out of sight.
    Hidden,
}

/// A packet that opens something, or might.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) kind: Kind,
    pub(crate) src: Endpoint,
    pub(crate) dst: Endpoint,
    /// Where the TCP header begins, from the network header; 0 where a reset cannot simply be made of the
    /// packet.
    pub(super) tcp: u32,
}

impl Opening {
    /// Its ends the other way round.
    #[inline(always)]
    pub(crate) fn turned(&self) -> Opening {
        Opening { src: self.dst, dst: self.src, ..*self }
    }
}

/// What is known of a packet's sender.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    /// It is a raw socket.
    pub(crate) raw: bool,
    /// `connect` or `dns` has left it alone, see [`role::PASSED`].
    pub(crate) passed: bool,
}

/// The context of guard_egress and guard_ingress.
pub(crate) struct Packet {
    pub(super) ctx: *mut __sk_buff,
    interface: u32,
    /// Of a packet that leaves: index of the interface by which it came into the namespace (`skb_iif`). 0 if
    /// a socket of the pod has sent it, and for one that arrives.
    forwarded_from: u32,
}

/// Where the network header is: an anchor that the kernel knows, and an offset from it.
#[derive(Clone, Copy)]
struct Start {
    anchor: u32,
    offset: u32,
    protocol: u32,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext, way: Way) -> Self {
        // Read once: of a field that is read in two places LLVM keeps the address, which the verifier
        // refuses.
        Self {
            ctx: ctx.skb.skb,
            interface: field!(ctx.skb.skb, ifindex),
            forwarded_from: if way == Way::Out { field!(ctx.skb.skb, ingress_ifindex) } else { 0 },
        }
    }

    /// The index in GUARD: the minor number of the filter's `classid`.
    #[inline(always)]
    pub(crate) fn index(&self) -> u32 {
        field!(self.ctx, tc_classid)
    }

    /// Index of the interface on which the packet leaves or arrives.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        self.interface
    }

    /// Whether the packet has a VLAN tag other than a mere priority: it belongs to an interface on top of
    /// this one.
    #[inline(always)]
    pub(crate) fn tagged(&self) -> bool {
        const ID: u32 = 0x0fff;
        field!(self.ctx, vlan_present) != 0 && field!(self.ctx, vlan_tci) & ID != 0
    }

    /// Whether the frame is addressed to another station: an interface below a bridge takes such frames in.
    #[inline(always)]
    pub(crate) fn for_another_station(&self) -> bool {
        const PACKET_OTHERHOST: u32 = 3;
        field!(self.ctx, pkt_type) == PACKET_OTHERHOST
    }

    /// Whether an arriving SYN is bound to a listener on this port already. That there is a socket says
    /// nothing: a packet of a neighbour on the same machine brings its sender's along, until `ip_rcv()`. But
    /// none that sends a SYN listens.
    #[inline(always)]
    pub(crate) fn bound_to(&self, port: u32) -> bool {
        let sk = self.sk();
        !sk.is_null() && field!(sk, state) == BPF_TCP_LISTEN && field!(sk, src_port) == port
    }

    #[inline(always)]
    fn sk(&self) -> *mut bpf_sock {
        field!(self.ctx, __bindgen_anon_2.sk)
    }

    /// The sending socket; `None` for a packet that was forwarded.
    #[inline(always)]
    pub(crate) fn sender(&self) -> Option<Sender> {
        let sk = self.sk();
        if sk.is_null() {
            return None;
        }
        // SAFETY: sk is the context's socket and not null.
        let sk = unsafe { bpf_sk_fullsock(sk) };
        if sk.is_null() {
            return None;
        }
        let raw = field!(sk, type_) == SOCK_RAW;
        let passed = origin(sk.cast(), None).is_some_and(|origin| origin.role == role::PASSED);
        Some(Sender { raw, passed })
    }

    /// The uid that the sending socket's maker had, as the owner of the network namespace sees it; 65534
    /// without a socket.
    #[inline(always)]
    pub(crate) fn uid(&self) -> u32 {
        // SAFETY: allowed in clsact programs since Linux 4.12.
        unsafe { bpf_get_socket_uid(self.ctx) }
    }

    /// What the packet opens; `None` for all that the guard does not look at.
    #[inline(always)]
    pub(crate) fn opening(&self) -> Option<Opening> {
        if self.goes_on_with_a_connection() {
            return None;
        }
        let start = self.start()?;
        if start.protocol == IPV4 {
            self.opening4(start)
        } else if start.protocol == IPV6 {
            self.opening6(start)
        } else {
            None
        }
    }

    /// Whether these flags of a TCP header are those of a segment that the guard does not look at. A SYN
    /// cookie is the pod's own answer, too, and carries no socket: the interface tells.
    #[inline(always)]
    fn goes_on(&self, flags: u8) -> bool {
        match flags & (SYN | ACK) {
            SYN => false,
            0 | ACK => true,
            _ => self.forwarded_from == 0,
        }
    }

    /// Whether it is a plain TCP segment, other than a SYN, in an Ethernet frame: nearly every packet is, and
    /// this reads it without a call. False says nothing.
    ///
    /// Where the interface has no link layer the frame begins with the IP header, whose first four bits are
    /// the version. So a frame that begins with these is looked at in the other way.
    #[inline(always)]
    fn goes_on_with_a_connection(&self) -> bool {
        const ETHERNET: usize = 14;
        let (protocol, start, end) = (
            field!(self.ctx, protocol),
            field!(self.ctx, data) as usize,
            field!(self.ctx, data_end) as usize,
        );
        let (version, tcp) = if protocol == IPV4 {
            (4, ETHERNET + size_of::<Ipv4Header>())
        } else if protocol == IPV6 {
            (6, ETHERNET + size_of::<Ipv6Header>())
        } else {
            return false;
        };
        if start + tcp + size_of::<TcpHeader>() > end {
            return false;
        }
        // SAFETY: `at` is below what was compared with the packet's end.
        let byte = |at: usize| unsafe { ((start + at) as *const u8).read() };
        // SAFETY: the same for `at + 1`.
        let half = |at: usize| unsafe { ((start + at) as *const u16).read_unaligned() };
        let plain = if version == 4 {
            byte(ETHERNET) == 0x45
                && half(ETHERNET + 6) & MORE_OR_LATER == 0
                && u32::from(byte(ETHERNET + 9)) == TCP
        } else {
            u32::from(byte(ETHERNET + 6)) == TCP
        };
        plain
            && byte(0) >> 4 != version
            && u32::from(half(ETHERNET - 2)) == protocol
            && self.goes_on(byte(tcp + 13))
    }

    /// A tag that the interface does not carry beside the packet is in front of its network header.
    #[inline(always)]
    fn start(&self) -> Option<Start> {
        const BEFORE_PROTOCOL: u32 = 12;
        const TAG: u32 = 4;
        let protocol = field!(self.ctx, protocol);
        if !is_vlan(protocol) {
            return Some(Start { anchor: BPF_HDR_START_NET, offset: 0, protocol });
        }
        let anchor = BPF_HDR_START_MAC;
        let first: u16 = self.load(anchor, BEFORE_PROTOCOL + TAG)?;
        if !is_vlan(first.into()) {
            return Some(Start { anchor, offset: BEFORE_PROTOCOL + TAG + 2, protocol: first.into() });
        }
        let second: u16 = self.load(anchor, BEFORE_PROTOCOL + 2 * TAG)?;
        Some(Start { anchor, offset: BEFORE_PROTOCOL + 2 * TAG + 2, protocol: second.into() })
    }

    #[inline(always)]
    fn opening4(&self, start: Start) -> Option<Opening> {
        const MORE: u16 = 0x2000;
        const OFFSET: u16 = 0x1fff;
        let header: Ipv4Header = self.load(start.anchor, start.offset)?;
        let protocol = u32::from(header.protocol);
        if protocol != TCP && protocol != UDP {
            return None;
        }
        let ends = [Ip::v4_word(header.source), Ip::v4_word(header.destination)];
        let fragment = u16::from_be(header.fragment);
        if fragment & OFFSET != 0 {
            return later_fragment(protocol, (fragment & OFFSET) << 3, ends);
        }
        let length = u32::from(header.version_and_length & 0x0f) << 2;
        let plain = length == 20 && fragment & MORE == 0 && start.anchor == BPF_HDR_START_NET;
        self.transport(start, length, protocol, ends, plain)
    }

    #[inline(always)]
    fn opening6(&self, start: Start) -> Option<Opening> {
        let header: Ipv6Header = self.load(start.anchor, start.offset)?;
        let ends = [Ip { words: header.source }, Ip { words: header.destination }];
        let (mut next, mut at) = (header.next, 40_u32);
        for _ in 0..MOST_EXTENSIONS {
            if next == FRAGMENT {
                let Some(fragment) = self.load::<FragmentHeader>(start.anchor, start.offset + at) else {
                    return hidden(ends);
                };
                let offset = u16::from_be(fragment.fragment) & !7;
                next = fragment.next;
                if offset != 0 {
                    return later_fragment(next.into(), offset, ends);
                }
                at += 8;
            } else if matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION) {
                let Some(extension) = self.load::<[u8; 2]>(start.anchor, start.offset + at) else {
                    return hidden(ends);
                };
                let length = u32::from(extension[1]);
                at += if next == AUTHENTICATION { (length + 2) << 2 } else { (length + 1) << 3 };
                next = extension[0];
            } else {
                break;
            }
            // One known range for the verifier, however many headers there were.
            at &= 0xffff;
        }
        match u32::from(next) {
            protocol @ (TCP | UDP) => {
                let plain = at == 40 && start.anchor == BPF_HDR_START_NET;
                self.transport(start, at, protocol, ends, plain)
            }
            _ if matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | AUTHENTICATION) => {
                hidden(ends)
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn transport(
        &self,
        start: Start,
        at: u32,
        protocol: u32,
        [src, dst]: [Ip; 2],
        plain: bool,
    ) -> Option<Opening> {
        let endpoint = |ip, port: u16| Endpoint { ip, port: u32::from(u16::from_be(port)) };
        if protocol == TCP {
            let Some(tcp) = self.load::<TcpHeader>(start.anchor, start.offset + at) else {
                return hidden([src, dst]);
            };
            if self.goes_on(tcp.flags) {
                return None;
            }
            let opens = tcp.flags & ACK == 0;
            return Some(Opening {
                kind: if opens { Kind::Syn } else { Kind::ForwardedAnswer },
                src: endpoint(src, tcp.source),
                dst: endpoint(dst, tcp.destination),
                tcp: if plain && opens { at } else { 0 },
            });
        }
        let udp: UdpHeader = self.load(start.anchor, start.offset + at)?;
        let dst = endpoint(dst, udp.destination);
        (dst.port == DNS_PORT || inside_only(&dst.ip)).then_some(Opening {
            kind: Kind::Question,
            src: endpoint(src, udp.source),
            dst,
            tcp: 0,
        })
    }

    /// Reads a header; `None` where the packet ends before it does.
    #[inline(always)]
    pub(super) fn load<T: Copy>(&self, anchor: u32, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes size_of::<T>() bytes in all cases; T is a plain header.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                self.ctx.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                anchor,
            )
        };
        // SAFETY: written above; any bytes are a valid header.
        (result == 0).then(|| unsafe { value.assume_init() })
    }
}

#[inline(always)]
fn is_vlan(protocol: u32) -> bool {
    protocol == VLAN || protocol == SERVICE_VLAN
}

/// Whether an address exists inside the pod only: loopback, or the private prefix.
#[inline(always)]
pub(crate) fn inside_only(ip: &Ip) -> bool {
    ip.is_loopback() || in_prefix6(ip)
}

#[inline(always)]
fn hidden([src, dst]: [Ip; 2]) -> Option<Opening> {
    let (src, dst) = (Endpoint { ip: src, port: 0 }, Endpoint { ip: dst, port: 0 });
    Some(Opening { kind: Kind::Hidden, src, dst, tcp: 0 })
}

/// A fragment that is not the first has no business below the end of a TCP header: there it would overwrite
/// what the first one showed (RFC 1858, 4.2).
#[inline(always)]
fn later_fragment(protocol: u32, offset: u16, ends: [Ip; 2]) -> Option<Opening> {
    if protocol == TCP && usize::from(offset) < size_of::<TcpHeader>() { hidden(ends) } else { None }
}
