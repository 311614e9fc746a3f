//! DNS messages as small as can be (RFC 1035).

use std::net::Ipv4Addr;

/// What every name resolves to.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

/// A question for the address of `<first>.test`.
#[must_use]
pub fn question(id: u16, first: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, first.len() as u8]);
    message.extend(first.bytes());
    message.extend(b"\x04test\x00\x00\x01\x00\x01");
    message
}

/// The id of a question or an answer.
#[must_use]
pub fn id(message: &[u8]) -> u16 {
    message.get(..2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The answer to a question: the same, marked as answer, with one address for type A and none for others.
#[must_use]
pub fn answer(question: &[u8]) -> Vec<u8> {
    let name_end = question.iter().skip(12).position(|byte| *byte == 0).map_or(12, |at| 13 + at);
    let end = (name_end + 4).min(question.len());
    let is_a = question.get(name_end..name_end + 2) == Some(&[0, 1]);
    let mut message = question[..end].to_vec();
    message[2] |= 0x80;
    message[3] = 0x80;
    message[6..12].copy_from_slice(&[0, u8::from(is_a), 0, 0, 0, 0]);
    if is_a {
        message.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04");
        message.extend(ANSWER.octets());
    }
    message
}
