//! What `redirect trace` reads: one record per decision.
//!
//! It travels through aya-log as one argument of bytes. As ten arguments with names, the logging code alone
//! would be more than the verifier is willing to walk (over 1,000,000 instructions on Linux 6.18).

use crate::addr::{Endpoint, Ip};

/// One decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// The pod: cookie of its network namespace.
    pub cookie: u64,
    /// Who dialled; 0 for inbound.
    pub pid: u32,
    /// Their uid in the initial user namespace; 0 for inbound.
    pub uid: u32,
    /// Their gid in the initial user namespace; 0 for inbound.
    pub gid: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`verdict`].
    pub verdict: u32,
    /// Number of a [`crate::Rule`] or, for inbound, an [`crate::InboundRule`].
    pub rule: u32,
    /// Outbound: the address that the socket is bound to, if any. Inbound: the client.
    pub src: Endpoint,
    /// The true destination.
    pub dst: Endpoint,
}

impl TraceRecord {
    /// A record from the hexadecimal digits that aya-log makes of its bytes; none where it is something else.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<TraceRecord> {
        let digits = hex.as_bytes();
        // A number may also begin with a sign.
        if digits.len() != 2 * RECORD_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut words = digits.chunks_exact(8).map(|chunk| {
            let word = u32::from_str_radix(core::str::from_utf8(chunk).ok()?, 16).ok()?;
            // The digits are the bytes in memory order.
            Some(u32::from_ne_bytes(word.to_be_bytes()))
        });
        let mut next = || words.next().flatten();
        let (low, high) = (next()?, next()?);
        let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
        let cookie = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = next()?;
        }
        let mut endpoint =
            || Some(Endpoint { ip: Ip { words: [next()?, next()?, next()?, next()?] }, port: next()? });
        let (src, dst) = (endpoint()?, endpoint()?);
        let [pid, uid, gid, kind, verdict, rule] = numbers;
        Some(TraceRecord { cookie, pid, uid, gid, kind, verdict, rule, src, dst })
    }
}

/// Values of [`TraceRecord::kind`].
pub mod kind {
    /// A TCP `connect()`.
    pub const CONNECT: u32 = 0;
    /// A UDP `connect()` or datagram.
    pub const DATAGRAM: u32 = 1;
    /// A connection from outside.
    pub const INBOUND: u32 = 2;
    /// A packet on its way out of the pod that the guard looked at.
    pub const LEAVING: u32 = 3;
}

/// Values of [`TraceRecord::verdict`].
pub mod verdict {
    /// Left alone.
    pub const DIRECT: u32 = 0;
    /// To the sidecar's outbound listener.
    pub const OUTBOUND: u32 = 1;
    /// To the sidecar's inbound listener.
    pub const INBOUND: u32 = 2;
    /// To the DNS proxy.
    pub const DNS: u32 = 3;
    /// To the inbound listener, which is not there.
    pub const REFUSED: u32 = 4;
    /// Dropped by the guard.
    pub const DROPPED: u32 = 5;
    /// The guard would have dropped it, but only audits.
    pub const AUDITED: u32 = 6;
}

/// The size of a record.
pub const RECORD_BYTES: usize = size_of::<TraceRecord>();

const _: () = assert!(RECORD_BYTES == 72);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_digits_and_nothing_else() {
        const ZEROS: &str = match core::str::from_utf8(&[b'0'; 2 * RECORD_BYTES]) {
            Ok(zeros) => zeros,
            Err(_) => "",
        };
        assert!(TraceRecord::from_hex(ZEROS).is_some());
        assert!(TraceRecord::from_hex(&ZEROS[1..]).is_none());
        // A number in Rust may begin with a sign.
        for (at, other) in [(0, b'+'), (8, b'+'), (16, b'-'), (24, b' '), (32, b'x')] {
            let mut digits = [b'0'; 2 * RECORD_BYTES];
            digits[at] = other;
            let text = core::str::from_utf8(&digits).unwrap();
            assert!(TraceRecord::from_hex(text).is_none(), "{text}");
        }
    }

    #[test]
    fn digits_are_the_bytes_in_memory_order() {
        let mut digits = [b'0'; 2 * RECORD_BYTES];
        // The cookie, and the pid behind it.
        digits[..24].copy_from_slice(b"010203040506070811121314");
        let record = TraceRecord::from_hex(core::str::from_utf8(&digits).unwrap()).unwrap();
        assert_eq!(record.cookie.to_ne_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(record.pid.to_ne_bytes(), [0x11, 0x12, 0x13, 0x14]);
        assert_eq!((record.uid, record.rule, record.dst.port), (0, 0, 0));
    }
}
