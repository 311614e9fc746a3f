//! Connections that were open before a pod was enrolled, and go around its sidecar: they are ended on
//! request, so that the application makes them again, through the sidecar.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use redirect_common::{Ip, Protocol, in_prefix};

use crate::attach::record::Attachment;
use crate::explain::{self, Question};
use crate::pod::netns::{Error, Netns, TcpSocket};

/// States in which something can still be sent.
const OPEN: [&str; 3] = ["ESTAB", "SYN-SENT", "CLOSE-WAIT"];
/// The group of a socket's maker is not told; it is in no list of a policy.
const UNKNOWN_GROUP: u32 = u32::MAX;

/// Resets the connections of a pod that its policy would take to the sidecar today, and that do not go
/// through it; how many there were. Those of the sidecar's own user, and those inside the pod, go on.
///
/// # Errors
/// The namespace cannot be looked at, or the kernel cannot end sockets (`CONFIG_INET_DIAG_DESTROY`).
pub fn around(attachment: &Attachment) -> Result<usize, Error> {
    let netns = Netns::open(&attachment.netns)?;
    let sockets = netns.tcp_sockets()?;
    let served: BTreeSet<u16> =
        sockets.iter().filter(|socket| socket.listens()).map(|socket| socket.own.port()).collect();
    let around: Vec<TcpSocket> =
        sockets.into_iter().filter(|socket| goes_around(socket, attachment, &served)).collect();
    if around.is_empty() { Ok(0) } else { netns.end_tcp(&around) }
}

fn goes_around(socket: &TcpSocket, attachment: &Attachment, served: &BTreeSet<u16>) -> bool {
    let (own, peer) = (canonical(socket.own), canonical(socket.peer));
    let inside = |ip: IpAddr| ip.is_loopback() || in_prefix(&Ip::from(ip)) || ip == own.ip();
    if !OPEN.contains(&socket.state) || socket.uid == attachment.host_uid || inside(peer.ip()) {
        return false;
    }
    let verdict = if served.contains(&own.port()) {
        explain::inbound(attachment, own.port(), None).verdict
    } else {
        let (uid, gid) = (socket.uid, UNKNOWN_GROUP);
        let question = Question { protocol: Protocol::Tcp, dst: peer, src: None, uid, gid };
        explain::outbound(attachment, &question).verdict
    };
    verdict != "direct"
}

/// A socket of IPv6 that talks IPv4 has mapped addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
