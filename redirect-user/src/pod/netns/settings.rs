//! What /proc says about a network namespace: its ephemeral ports, and where IPv6 is on.
//!
//! A file below /proc/sys/net belongs to the namespace of the thread that opens it,
//! so everything here is to be called inside.

use std::fs;
use std::io;
use std::path::Path;

const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// How far a namespace has IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// Neither now nor later without somebody changing a sysctl: no interface besides `lo` has it.
    Off,
    /// An interface has it and `lo` does not: `net.ipv6.conf.lo.disable_ipv6` is 1. Nothing can be redirected
    /// to a sidecar over `lo`, and the sidecar cannot reach the application from `::6`.
    NotOnLo,
    /// `lo` and another interface have it, an address or not.
    On,
}

/// The settings, read in the namespace.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// First and last port that it gives to outgoing connections (`net.ipv4.ip_local_port_range`, for IPv6 as
    /// well).
    pub ephemeral_ports: (u16, u16),
    /// How far it has IPv6.
    pub ipv6: Ipv6,
}

impl Settings {
    /// Reads them in the calling thread's namespace.
    pub(super) fn read() -> io::Result<Settings> {
        Ok(Settings { ephemeral_ports: port_range()?, ipv6: ipv6(Path::new(IPV6))? })
    }
}

fn port_range() -> io::Result<(u16, u16)> {
    let text = fs::read_to_string(PORT_RANGE)?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(io::Error::other(format!("{PORT_RANGE} is not a range of ports: {text:?}"))),
    }
}

/// Reads `<folder>/<interface>/disable_ipv6` of every interface. `all` and `default` are no interfaces: what
/// they were set to has reached the interfaces there are.
fn ipv6(folder: &Path) -> io::Result<Ipv6> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ipv6::Off),
        Err(error) => return Err(error),
    };
    let (mut on_lo, mut elsewhere) = (false, false);
    for entry in entries.flatten() {
        let name = entry.file_name();
        // An interface may go away between the two system calls.
        let Ok(text) = fs::read_to_string(entry.path().join("disable_ipv6")) else { continue };
        let on = text.trim() == "0";
        if name == "lo" {
            on_lo = on;
        } else if name != "all" && name != "default" {
            elsewhere |= on;
        }
    }
    Ok(match (on_lo, elsewhere) {
        (_, false) => Ipv6::Off,
        (false, true) => Ipv6::NotOnLo,
        (true, true) => Ipv6::On,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(interfaces: &[(&str, &str)]) -> Ipv6 {
        let folder = std::env::temp_dir().join(format!("redirect-ipv6-{}", std::process::id()));
        for (name, value) in interfaces {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("disable_ipv6"), value).unwrap();
        }
        let found = ipv6(&folder);
        fs::remove_dir_all(&folder).unwrap();
        found.unwrap()
    }

    #[test]
    fn ipv6_is_on_where_lo_and_another_interface_have_it() {
        assert_eq!(read(&[("all", "0\n"), ("default", "0\n"), ("lo", "0\n"), ("eth0", "0\n")]), Ipv6::On);
        assert_eq!(read(&[("lo", "0\n"), ("eth0", "1\n"), ("net1", "0\n")]), Ipv6::On);
        assert_eq!(read(&[("all", "0\n"), ("default", "0\n"), ("lo", "0\n"), ("eth0", "1\n")]), Ipv6::Off);
        assert_eq!(read(&[("lo", "0\n")]), Ipv6::Off);
        assert_eq!(read(&[("lo", "1\n"), ("eth0", "0\n")]), Ipv6::NotOnLo);
        assert_eq!(ipv6(Path::new("/nonexistent")).unwrap(), Ipv6::Off);
    }
}
