//! A refused SYN is answered: the packet itself becomes the reset that its sender gets, and goes back the way
//! it came.
//!
//! Without an answer the sender would repeat its SYN for two minutes (`tcp_syn_retries`).

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes,
};

use super::packet::{Opening, Packet, TcpHeader, Way};

/// `RST | ACK`
const RESET: u8 = 0x14;
/// The length of an Ethernet header.
const ETHERNET: u32 = 14;

impl Packet {
    /// Turns a SYN into the reset that answers it (RFC 9293, 3.10.7.1: sequence 0, the SYN acknowledged) and
    /// sends it back; what the filter must return then. `None` where that cannot be done simply: options of
    /// IPv4, extension headers, a VLAN tag inside the packet. The packet is to be dropped then.
    #[inline(always)]
    pub(crate) fn reset(&self, opening: &Opening, way: Way) -> Option<i32> {
        if opening.tcp == 0 {
            return None;
        }
        let link = self.link_length()?;
        let tcp: TcpHeader = self.load(BPF_HDR_START_NET, opening.tcp)?;
        if link == ETHERNET {
            let stations: [[u8; 6]; 2] = self.load_from_link(0)?;
            self.store(0, &[stations[1], stations[0]])?;
        }
        if opening.dst.ip.is_v4() {
            self.store(link + 12, &[opening.dst.ip.words[3], opening.src.ip.words[3]])?;
        } else {
            self.store(link + 8, &opening.dst.ip.words)?;
            self.store(link + 24, &opening.src.ip.words)?;
        }
        self.store(link + opening.tcp, &[tcp.destination, tcp.source])?;
        self.rewrite(link + opening.tcp, &tcp)?;
        let flags = if way == Way::Out { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the helper takes two numbers; the packet is sent when the filter returns.
        Some(unsafe { bpf_redirect(self.interface(), flags) } as i32)
    }

    /// Sequence, acknowledgement and flags. Addresses and ports have only changed places, which no checksum
    /// notices.
    #[inline(always)]
    fn rewrite(&self, at: u32, tcp: &TcpHeader) -> Option<()> {
        const SEQUENCE: u32 = 4;
        const FLAGS: u32 = 12;
        const CHECKSUM: u32 = 16;
        let acknowledged = u32::from_be(tcp.sequence).wrapping_add(1).to_be();
        let before = u16::from_ne_bytes([tcp.offset, tcp.flags]);
        let after = u16::from_ne_bytes([tcp.offset, RESET]);
        let replace = |from: u64, to: u64, width: u64| {
            // SAFETY: the helper checks the offset; a checksum that the interface computes later is left
            // alone by it.
            let result = unsafe { bpf_l4_csum_replace(self.ctx, at + CHECKSUM, from, to, width) };
            (result == 0).then_some(())
        };
        replace(tcp.sequence.into(), 0, 4)?;
        replace(tcp.acknowledged.into(), acknowledged.into(), 4)?;
        replace(before.into(), after.into(), 2)?;
        self.store(at + SEQUENCE, &[0, acknowledged])?;
        self.store(at + FLAGS, &[tcp.offset, RESET])
    }

    /// How long the link layer's header is. The context does not say it: where the network header's bytes
    /// are, it ends.
    #[inline(always)]
    fn link_length(&self) -> Option<u32> {
        let header: [u64; 2] = self.load(BPF_HDR_START_NET, 0)?;
        for length in [ETHERNET, 0] {
            let bytes: [u64; 2] = self.load_from_link(length)?;
            if (bytes[0] ^ header[0]) | (bytes[1] ^ header[1]) == 0 {
                return Some(length);
            }
        }
        None
    }

    #[inline(always)]
    fn load_from_link<T: Copy>(&self, offset: u32) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes size_of::<T>() bytes in all cases.
        let result = unsafe {
            bpf_skb_load_bytes(self.ctx.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32)
        };
        // SAFETY: written above; any bytes are a valid T.
        (result == 0).then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: u32, value: &T) -> Option<()> {
        // SAFETY: the helper reads size_of::<T>() bytes of the value.
        let result = unsafe {
            bpf_skb_store_bytes(self.ctx, offset, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, 0)
        };
        (result == 0).then_some(())
    }
}
