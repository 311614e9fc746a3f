//! Names as file names: those of containers and interfaces hold characters that bpffs refuses.

/// A name as a file name that bpffs accepts: letters, digits and `-` stay, everything else becomes `_xx`.
#[must_use]
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}"));
        }
    }
    out
}

/// The reverse of [`encode`]; `None` for what `encode` never writes.
#[must_use]
pub fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    // Each name is written in one way only: with these digits, and with no other letter replaced.
    String::from_utf8(bytes).ok().filter(|decoded| encode(decoded) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_one_that_bpffs_accepts_and_comes_back() {
        for name in ["eth0", "net1.100", "a_b", "..", "", "héllo", "x/y"] {
            let encoded = encode(name);
            assert!(!encoded.contains(['.', '/']), "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
        // A sign is no digit, and each name has one file.
        for bad in ["_zz", "_2", "_+f", "_-1", "_2E", "_61", "a.b", "_ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
