//! Where an arriving SYN would go, and how it is given to the sidecar's listener instead.
//!
//! The kernel is asked (`bpf_skc_lookup_tcp()` looks where it would look, the program of sk_lookup included),
//! and what it chooses is made binding: a packet that carries its socket is not looked up again, and is not
//! forwarded either (`ip_forward()` and `ip6_forward()` drop it), so no rule of the pod can lead it
//! elsewhere.

use aya_ebpf::bindings::{BPF_TCP_LISTEN, BPF_TCP_TIME_WAIT, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp};
use redirect_common::{Endpoint, ListenerKey};

use super::is_foreign;
use super::packet::{Opening, Packet};
use crate::listener::Receiver;
use crate::maps;

/// Who is to get an arriving SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The sidecar, or a connection that is there already; the packet is bound to it.
    Bound,
    /// The same, but the packet could not be bound: before Linux 6.6 a socket with SO_REUSEPORT is refused
    /// here. The kernel will find it by itself.
    Found,
    /// Another listener of the pod.
    Other,
    /// Another listener, for a client whose last connection with these very ports is in TIME_WAIT. While it
    /// is, the kernel lets no other socket than that one go on with them (`inet_ehash_insert()`).
    OtherAgain,
    /// No listener at all.
    None,
}

/// `struct bpf_sock_tuple` of either family.
#[repr(C)]
struct Tuple<A> {
    source: A,
    destination: A,
    source_port: u16,
    destination_port: u16,
}

impl Packet {
    /// Asks the kernel for the socket of a SYN and binds the packet to it, if it is the sidecar's.
    #[inline(always)]
    pub(crate) fn choice(&self, opening: &Opening, sidecar: u32) -> Choice {
        let sk = self.look_up(&opening.src, &opening.dst);
        if sk.is_null() {
            return Choice::None;
        }
        let (state, port) = (field!(sk, state), field!(sk, src_port));
        let choice = if state == BPF_TCP_TIME_WAIT || (state == BPF_TCP_LISTEN && port != sidecar) {
            Choice::Other
        } else if self.bind(sk) {
            Choice::Bound
        } else {
            Choice::Found
        };
        // SAFETY: the reference taken by the look-up.
        unsafe { bpf_sk_release(sk.cast()) };
        if state == BPF_TCP_TIME_WAIT { self.after_time_wait(opening, sidecar) } else { choice }
    }

    /// Whether a SYN that is meant for the sidecar would get to another listener of the pod. The packet is
    /// left as it is.
    #[inline(always)]
    pub(crate) fn would_pass_by(&self, opening: &Opening, sidecar: u32) -> bool {
        let sk = self.look_up(&opening.src, &opening.dst);
        if sk.is_null() {
            return false;
        }
        let by = field!(sk, state) == BPF_TCP_LISTEN && field!(sk, src_port) != sidecar;
        // SAFETY: the reference taken by the look-up.
        unsafe { bpf_sk_release(sk.cast()) };
        by
    }

    /// A SYN that begins such a connection again goes from the old one's TIME_WAIT to a listener
    /// (`TCP_TW_SYN` in `tcp_v4_rcv()`). To which, a look-up with a source port shows that no connection has.
    #[inline(always)]
    fn after_time_wait(&self, opening: &Opening, sidecar: u32) -> Choice {
        let nobody = Endpoint { ip: opening.src.ip, port: 0 };
        let sk = self.look_up(&nobody, &opening.dst);
        if sk.is_null() {
            return Choice::None;
        }
        let port = field!(sk, src_port);
        // SAFETY: the reference taken by the look-up.
        unsafe { bpf_sk_release(sk.cast()) };
        if port == sidecar { Choice::Found } else { Choice::OtherAgain }
    }

    /// Binds the packet to whoever listens on the sidecar's port, at the pod's address or at localhost: for a
    /// sidecar that began to listen when the program that registers listeners was gone.
    #[inline(always)]
    pub(crate) fn bind_to_port(&self, opening: &Opening, port: u32) -> bool {
        let nobody = Endpoint { ip: opening.src.ip, port: 0 };
        let localhost = opening.dst.ip.family().localhost();
        self.bind_to(&nobody, &Endpoint { ip: opening.dst.ip, port })
            || self.bind_to(&nobody, &Endpoint { ip: localhost, port })
    }

    #[inline(always)]
    fn bind_to(&self, from: &Endpoint, to: &Endpoint) -> bool {
        let sk = self.look_up(from, to);
        if sk.is_null() {
            return false;
        }
        let listens = field!(sk, state) == BPF_TCP_LISTEN && field!(sk, src_port) == to.port;
        let bound = listens && !is_foreign(sk.cast()) && self.bind(sk);
        // SAFETY: the reference taken by the look-up.
        unsafe { bpf_sk_release(sk.cast()) };
        bound
    }

    /// The socket that the kernel finds, with a reference to it, or null.
    #[inline(always)]
    fn look_up(&self, from: &Endpoint, to: &Endpoint) -> *mut bpf_sock {
        let (source_port, destination_port) = ((from.port as u16).to_be(), (to.port as u16).to_be());
        if to.ip.is_v4() {
            let (source, destination) = (from.ip.words[3], to.ip.words[3]);
            self.find(&Tuple { source, destination, source_port, destination_port })
        } else {
            let (source, destination) = (from.ip.words, to.ip.words);
            self.find(&Tuple { source, destination, source_port, destination_port })
        }
    }

    #[inline(always)]
    fn find<A>(&self, tuple: &Tuple<A>) -> *mut bpf_sock {
        const OWN_NAMESPACE: u64 = u64::MAX;
        // SAFETY: the helper reads the tuple, whose size tells it the family; since Linux 5.2.
        unsafe {
            bpf_skc_lookup_tcp(
                self.ctx.cast(),
                core::ptr::from_ref(tuple).cast_mut().cast(),
                size_of::<Tuple<A>>() as u32,
                OWN_NAMESPACE,
                0,
            )
        }
    }

    #[inline(always)]
    fn bind(&self, sk: *mut bpf_sock) -> bool {
        // SAFETY: sk is a referenced socket that is not null; allowed on the way in since Linux 5.7.
        unsafe { bpf_sk_assign(self.ctx.cast(), sk.cast(), 0) == 0 }
    }
}

impl Receiver for Packet {
    #[inline(always)]
    fn assign(&self, key: &ListenerKey) -> bool {
        // SAFETY: a sockhash look-up returns a referenced socket or null; it is released below.
        let sk: *mut bpf_sock =
            unsafe { bpf_map_lookup_elem(maps::listeners_ptr(), core::ptr::from_ref(key).cast()) }.cast();
        if sk.is_null() {
            return false;
        }
        let bound = self.bind(sk);
        // SAFETY: the reference taken by the look-up above.
        unsafe { bpf_sk_release(sk.cast()) };
        bound
    }
}
