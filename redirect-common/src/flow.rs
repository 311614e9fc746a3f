//! What a hook knows about a connection before it decides.

use crate::addr::{Endpoint, Family, Ip};

/// The transport protocols that can be captured. Others never reach a decision.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, and MPTCP where the kernel runs the connect hooks for it.
    Tcp,
    /// UDP: only DNS is ever captured.
    Udp,
}

/// Who opens the connection: ids as the *initial* user namespace sees them, which is what
/// `bpf_get_current_uid_gid()` returns and what the pod's configuration holds (translated at attach).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One outbound connection attempt, or one datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address that the application dialled, already passed through [`Flow::new`].
    pub dst: Endpoint,
    /// The family of `dst`, kept so that a program asks only once.
    pub family: Family,
    /// The address that the socket is bound to, [`Ip::NONE`] when it is not.
    pub src: Ip,
    /// Who dials.
    pub caller: Caller,
}

impl Flow {
    /// A flow as the kernel will route it: dialling the unspecified address means the bound source address,
    /// and without one localhost (`ip_route_output_key_hash_rcu()` and `tcp_v6_connect()` do that after the
    /// hook). To an address of `lo` goes what comes from that address (RFC 6724, 5, rule 1), so an unbound
    /// socket that dials `::6` has `::6` as its source; 127.0.0.6 is no address of an interface, and the
    /// source becomes 127.0.0.1.
    #[must_use]
    #[inline(always)]
    pub fn new(protocol: Protocol, dialled: Endpoint, src: Ip, caller: Caller) -> Flow {
        let src = if src.is_unspecified() { Ip::NONE } else { src };
        let mut dst = dialled;
        if dialled.ip.is_unspecified() {
            dst.ip = match (dialled.ip.is_v4(), src.is_unspecified()) {
                (true, false) if src.is_v4() => src,
                (true, _) => Ip::LOCALHOST4,
                // `::` on a socket bound to an IPv4-mapped address becomes ::ffff:127.0.0.1.
                (false, false) if src.is_v4() => Ip::LOCALHOST4,
                (false, _) => Ip::LOCALHOST6,
            };
        }
        let src = if src.is_unspecified() && dst.ip.same(&Ip::PASSTHROUGH6) { dst.ip } else { src };
        Flow { protocol, dst, family: dst.ip.family(), src, caller }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn flow(text: &str, src: &str) -> Flow {
        let ip = |t: &str| Ip::from(t.parse::<IpAddr>().unwrap());
        let caller = Caller { uid: 0, gid: 0 };
        Flow::new(Protocol::Tcp, Endpoint { ip: ip(text), port: 80 }, ip(src), caller)
    }

    fn dialled(text: &str, src: &str) -> IpAddr {
        flow(text, src).dst.ip.into()
    }

    #[test]
    fn an_unbound_socket_that_dials_the_passthrough_address() {
        assert_eq!(flow("::6", "::").src, Ip::PASSTHROUGH6);
        assert_eq!(flow("::6", "::1").src, Ip::LOCALHOST6);
        assert_eq!(flow("127.0.0.6", "0.0.0.0").src, Ip::NONE);
        assert_eq!(flow("::7", "::").src, Ip::NONE);
    }

    #[test]
    fn the_unspecified_destination_means_this_host() {
        assert_eq!(dialled("0.0.0.0", "0.0.0.0"), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(dialled("::", "::"), "::1".parse::<IpAddr>().unwrap());
        assert_eq!(dialled("0.0.0.0", "10.0.0.9"), "10.0.0.9".parse::<IpAddr>().unwrap());
        assert_eq!(dialled("::", "10.0.0.9"), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(dialled("10.1.1.1", "::"), "10.1.1.1".parse::<IpAddr>().unwrap());
    }
}
