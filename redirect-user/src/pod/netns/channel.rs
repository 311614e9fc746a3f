//! One netlink conversation with the kernel's routing tables: a request, its answers, and "done".

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Bytes of the longest packet that is read.
const ROOM: usize = 32 << 10;

/// A socket to the routing tables of the namespace in which it was opened.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Channel> {
        Ok(Channel { socket: Socket::new(NETLINK_ROUTE)?, sequence: 0 })
    }

    /// All answers to a question about a whole table.
    pub(super) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(request, NLM_F_DUMP)
    }

    /// A request that is acknowledged; "exists" and "does not exist" are not errors but `false`.
    pub(super) fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<bool> {
        match self.exchange(request, NLM_F_ACK | flags) {
            Ok(_) => Ok(true),
            Err(error) if already_so(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends several requests in one message, which the kernel carries out one after the other, even if one
    /// of them fails; an answer for each.
    pub(super) fn talk(
        &mut self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<io::Result<Vec<RouteNetlinkMessage>>>> {
        let first = self.sequence + 1;
        let mut buffer = Vec::new();
        for (request, flags) in requests {
            self.sequence += 1;
            let mut message = NetlinkMessage::from(request);
            message.header.flags = NLM_F_REQUEST | flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = buffer.len();
            buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut buffer[start..]);
        }
        self.socket.send_to(&buffer, &SocketAddr::new(0, 0), 0)?;
        let mut packet = Vec::new();
        (first..=self.sequence).map(|sequence| self.answer_to(sequence, &mut packet)).collect()
    }

    /// What is left of the packet that was read last may hold the answer to the next request.
    fn answer_to(
        &mut self,
        sequence: u32,
        packet: &mut Vec<u8>,
    ) -> io::Result<io::Result<Vec<RouteNetlinkMessage>>> {
        let mut answers = Vec::new();
        loop {
            while packet.len() >= 16 {
                let length = u32::from_ne_bytes([packet[0], packet[1], packet[2], packet[3]]) as usize;
                let end = length.next_multiple_of(4).clamp(16, packet.len());
                let one: Vec<u8> = packet.drain(..end).collect();
                match read_packet(&one, sequence, &mut answers) {
                    Ok(true) => return Ok(Ok(answers)),
                    Ok(false) => {}
                    // What a neighbour's filter looks like need not be known to be counted.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        answers.push(unreadable(&one));
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            *packet = self.receive()?;
        }
    }

    /// The next packet. The kernel fills at most 32 KiB for a dump (`netlink_dump` in
    /// net/netlink/af_netlink.c); a longer one is an error, not half an answer.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut packet = Vec::with_capacity(ROOM);
        let (length, _) = self.socket.recv_from(&mut packet, libc::MSG_TRUNC)?;
        if length > packet.len() {
            let text = format!("netlink: an answer of {length} bytes, where {ROOM} are the most");
            return Err(io::Error::other(text));
        }
        Ok(packet)
    }

    /// Sends one request and reads until the kernel says that it is done.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send_to(&buffer, &SocketAddr::new(0, 0), 0)?;
        let mut answers = Vec::new();
        loop {
            if read_packet(&self.receive()?, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// A message that the library cannot read, as a filter of which only the handle is known (`struct tcmsg` of
/// `linux/rtnetlink.h`, behind 16 bytes of `struct nlmsghdr`).
fn unreadable(message: &[u8]) -> RouteNetlinkMessage {
    let mut filter = TcMessage::default();
    if let Some(handle) = message.get(24..28).and_then(|bytes| bytes.try_into().ok()) {
        filter.header.handle = u32::from_ne_bytes(handle).into();
    }
    RouteNetlinkMessage::NewTrafficFilter(filter)
}

/// Collects the answers in a packet; true when the exchange is over.
fn read_packet(packet: &[u8], sequence: u32, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = packet;
    while rest.len() >= 16 {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
        if length == 0 {
            break;
        }
        rest = &rest[length..];
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => {
                return match error.code {
                    None => Ok(true),
                    Some(_) => Err(error.to_io()),
                };
            }
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
    }
    Ok(false)
}

/// "It exists", "there is no such route", "there is no such address".
fn already_so(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ESRCH | libc::EADDRNOTAVAIL))
}
