//! Which records a reader wants.

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use ipnet::IpNet;

/// The filters of `redirect trace`; a record must pass all of them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only these verdicts, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERDICT")]
    verdict: Vec<Verdict>,
    /// Only connections to an address, a range, or an address and port: 10.0.0.7, 10.0.0.0/8, 10.0.0.7:80,
    /// [fd00::1]:80.
    #[arg(long, value_name = "DST", value_parser = destination)]
    dst: Option<Destination>,
    /// Only connections to these ports, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "PORT")]
    port: Vec<u16>,
}

/// A verdict, in the order of `redirect_common::trace::verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verdict {
    /// Left alone.
    Direct,
    /// To the sidecar's outbound listener.
    ToOutbound,
    /// To the sidecar's inbound listener.
    ToInbound,
    /// To the DNS proxy.
    ToDns,
    /// Refused: the sidecar does not listen.
    Refused,
    /// Dropped by the guard.
    Dropped,
    /// The guard would have dropped it, and only audits.
    WouldDrop,
}

impl Verdict {
    /// The verdict of a record's number.
    pub(crate) fn of(number: u32) -> Option<Verdict> {
        Verdict::value_variants().get(number as usize).copied()
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Direct => "direct",
            Verdict::ToOutbound => "to-outbound",
            Verdict::ToInbound => "to-inbound",
            Verdict::ToDns => "to-dns",
            Verdict::Refused => "refused",
            Verdict::Dropped => "dropped",
            Verdict::WouldDrop => "would-drop",
        }
    }
}

/// What `--dst` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Range(IpNet),
    Endpoint(SocketAddr),
}

fn destination(text: &str) -> Result<Destination, String> {
    if let Ok(range) = text.parse() {
        return Ok(Destination::Range(range));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Destination::Range(IpNet::from(ip)));
    }
    let wrong = |_| format!("{text:?} is no address, range, or address and port");
    text.parse().map(Destination::Endpoint).map_err(wrong)
}

impl Filter {
    /// Whether a record passes.
    pub(crate) fn passes(&self, verdict: Option<Verdict>, dst: SocketAddr) -> bool {
        let to = match self.dst {
            None => true,
            Some(Destination::Range(range)) => range.contains(&dst.ip()),
            Some(Destination::Endpoint(wanted)) => wanted == dst,
        };
        let of = self.verdict.is_empty() || verdict.is_some_and(|verdict| self.verdict.contains(&verdict));
        to && of && (self.port.is_empty() || self.port.contains(&dst.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_passes_all_filters_or_none() {
        let dst: SocketAddr = "10.0.0.7:3306".parse().unwrap();
        let filter = |dst: &str, verdict: &[Verdict], port: &[u16]| Filter {
            dst: (!dst.is_empty()).then(|| destination(dst).unwrap()),
            verdict: verdict.to_vec(),
            port: port.to_vec(),
        };
        let direct = Some(Verdict::Direct);
        assert!(filter("", &[], &[]).passes(direct, dst));
        assert!(filter("10.0.0.0/8", &[Verdict::Direct], &[80, 3306]).passes(direct, dst));
        assert!(filter("10.0.0.7", &[], &[]).passes(direct, dst));
        assert!(filter("10.0.0.7:3306", &[], &[]).passes(direct, dst));
        assert!(!filter("10.0.0.7:80", &[], &[]).passes(direct, dst));
        assert!(!filter("10.1.0.0/16", &[], &[]).passes(direct, dst));
        assert!(!filter("", &[Verdict::Refused, Verdict::Dropped], &[]).passes(direct, dst));
        assert!(!filter("", &[], &[80]).passes(direct, dst));
        assert!(destination("reviews").is_err());
    }
}
