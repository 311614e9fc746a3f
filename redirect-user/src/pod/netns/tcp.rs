//! The TCP sockets of a network namespace, from `/proc/thread-self/net`: a file there belongs to the
//! namespace of the thread that opens it.

use std::net::{IpAddr, SocketAddr};
use std::{fs, io};

use redirect_common::Ip;

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own address.
    pub own: SocketAddr,
    /// The other end's, unspecified where there is none.
    pub peer: SocketAddr,
    /// Its state, as `ss` calls it.
    pub state: &'static str,
    /// Who made it, as the reader's user namespace knows him.
    pub uid: u32,
}

impl TcpSocket {
    /// Whether it listens.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.state == LISTEN
    }
}

const LISTEN: &str = "LISTEN";
/// The states from 1 on, `net/tcp_states.h`.
const STATES: [&str; 12] = [
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    LISTEN,
    "CLOSING",
    "NEW-SYN-RECV",
];

/// All TCP sockets of the calling thread's namespace.
pub(super) fn sockets() -> io::Result<Vec<TcpSocket>> {
    let v4 = fs::read_to_string("/proc/thread-self/net/tcp")?;
    // A kernel without IPv6 does not have the second file.
    let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    Ok(v4.lines().chain(v6.lines()).filter_map(socket).collect())
}

/// A line: number, own address, peer's address, state, queues, timer, retransmissions, uid, and more.
fn socket(line: &str) -> Option<TcpSocket> {
    let mut columns = line.split_whitespace().skip(1);
    let (own, peer) = (address(columns.next()?)?, address(columns.next()?)?);
    let number = usize::from_str_radix(columns.next()?, 16).ok()?;
    let uid = columns.nth(3)?.parse().ok()?;
    Some(TcpSocket { own, peer, state: STATES.get(number.checked_sub(1)?)?, uid })
}

/// `0100007F:1F90`: the words of the address as the machine's numbers, their bytes in network order; and the
/// port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<u32> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let ip: IpAddr = match words[..] {
        [word] => Ip::v4_word(word).into(),
        [a, b, c, d] => Ip { words: [a, b, c, d] }.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_both_files() {
        let v4 =
            socket("   0: 0200A00A:9C40 0700407F:3A99 01 00000000:00000000 00:00000000 00000000  1337 0")
                .unwrap();
        assert_eq!(
            (v4.own.to_string(), v4.peer.to_string()),
            ("10.160.0.2:40000".into(), "127.64.0.7:15001".into())
        );
        assert_eq!((v4.state, v4.uid), ("ESTAB", 1337));
        let any = "00000000000000000000000000000000";
        let v6 = socket(&format!("   0: {any}:C001 {any}:0000 0A 0:0 0:0 0 0 0")).unwrap();
        assert!(v6.listens() && v6.own.port() == 49153);
        assert_eq!(socket("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when"), None);
    }
}
