//! The captured connections of a pod, with their true destinations. The kernel's list of sockets (what `ss`
//! shows) has the sidecar's address for them; DESTINATIONS says what it stands for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use redirect_common::{Ip, in_prefix};

use crate::attach::map;
use crate::attach::record::Attachment;
use crate::attach::tables::Tables;
use crate::node::Node;
use crate::pod::netns::{self, Netns, TcpSocket};

/// A connection of an application to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The application's end.
    pub client: SocketAddr,
    /// What the application dialled; `None` after the detour, where only the socket itself knows.
    pub destination: Option<SocketAddr>,
    /// Where it meets the sidecar.
    pub sidecar: SocketAddr,
    /// The state of the application's socket, as `ss` calls it.
    pub state: &'static str,
}

/// Why they cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace cannot be looked at.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The maps cannot be read.
    #[error(transparent)]
    Tables(#[from] map::Error),
}

/// The captured TCP connections of a pod.
///
/// # Errors
/// Its namespace or the maps cannot be read.
pub fn of(node: &Node, attachment: &Attachment) -> Result<Vec<Connection>, Error> {
    let sockets = Netns::open(&attachment.netns)?.tcp_sockets()?;
    let destinations = Tables::open(node)?.destinations(attachment.cookie)?;
    Ok(join(sockets, &destinations.into_iter().collect(), &listeners(attachment)))
}

fn listeners(attachment: &Attachment) -> [u16; 2] {
    let proxy = &attachment.policy.proxy;
    [proxy.outbound_port, proxy.inbound_port]
}

/// The sockets whose peer is a listener of the sidecar in the private prefix or on localhost.
fn join(
    sockets: Vec<TcpSocket>,
    destinations: &BTreeMap<IpAddr, SocketAddr>,
    listeners: &[u16; 2],
) -> Vec<Connection> {
    let to_sidecar = |socket: &TcpSocket| {
        let ip = socket.peer.ip();
        listeners.contains(&socket.peer.port()) && (ip.is_loopback() || in_prefix(&Ip::from(ip)))
    };
    let told = sockets.into_iter().filter(to_sidecar).map(|socket| Connection {
        client: socket.own,
        destination: destinations.get(&socket.peer.ip()).copied(),
        sidecar: socket.peer,
        state: socket.state,
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(own: &str, peer: &str) -> TcpSocket {
        TcpSocket { own: own.parse().unwrap(), peer: peer.parse().unwrap(), state: "ESTAB", uid: 0 }
    }

    #[test]
    fn only_the_applications_ends_are_told_with_what_they_dialled() {
        let sockets = vec![
            socket("10.77.0.2:40000", "127.64.0.7:15001"),
            socket("127.64.0.7:15001", "10.77.0.2:40000"),
            socket("10.77.0.2:40001", "127.64.0.7:8080"),
            socket("10.77.0.2:40002", "127.0.0.1:15001"),
            socket("10.77.0.2:40003", "192.0.2.1:15001"),
        ];
        let stands_for = [("127.64.0.7".parse().unwrap(), "192.0.2.10:80".parse().unwrap())];
        let told = join(sockets, &stands_for.into(), &[15001, 15006]);
        let told: Vec<_> = told.iter().map(|one| (one.client.port(), one.destination)).collect();
        assert_eq!(told, [(40000, Some("192.0.2.10:80".parse().unwrap())), (40002, None)]);
    }
}
