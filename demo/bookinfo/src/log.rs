//! The access logs of the Envoys, as the container runtime keeps them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One request as one Envoy logged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Which listener: [`crate::proxy::OUTBOUND`], `INBOUND` or `INGRESS`.
    pub(crate) listener: String,
    /// What all requests made for one request from outside have in common.
    pub(crate) request_id: Option<String>,
    /// HTTP method.
    pub(crate) method: Option<String>,
    /// HTTP path.
    pub(crate) path: Option<String>,
    /// HTTP status.
    pub(crate) status: Option<u16>,
    /// Why it failed, in Envoy's letters; none for a good one.
    pub(crate) flags: Option<String>,
    /// Who connected: the accepted socket's peer.
    pub(crate) client: SocketAddr,
    /// Where the connection was going before it was captured.
    pub(crate) original_dst: SocketAddr,
    /// The name in the client's certificate.
    pub(crate) peer: Option<String>,
    /// The TLS version.
    pub(crate) tls: Option<String>,
    /// Where Envoy connected on the client's behalf.
    pub(crate) upstream: Option<SocketAddr>,
    /// From where.
    pub(crate) upstream_local: Option<SocketAddr>,
}

impl Line {
    fn parse(text: &str) -> Result<Line> {
        let mut line: Line = serde_json::from_str(text)
            .with_context(|| format!("this is no line of an access log: {text}"))?;
        // Envoy prints "-" for "none" here, unlike for other missing values.
        line.flags = line.flags.filter(|flags| flags != "-");
        Ok(line)
    }
}

/// The requests in a container's log. A CRI log has lines of `TIME stdout|stderr F|P TEXT`; Envoy's own
/// messages go to stderr, the access log to stdout.
pub(crate) fn requests(container_log: &str) -> Result<Vec<Line>> {
    // What follows the last line end is still being written.
    let whole = container_log.rfind('\n').map_or("", |end| &container_log[..end]);
    let lines = whole.lines().filter_map(|line| {
        let mut parts = line.splitn(4, ' ').skip(1);
        (parts.next()? == "stdout").then(|| parts.nth(1)).flatten()
    });
    lines.map(Line::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"listener":"inbound","request_id":"1","method":"GET","path":"/ratings/0","status":200,
        "flags":"-","client":"10.88.0.3:4000","original_dst":"10.88.0.4:9080","peer":"spiffe://x","tls":"TLSv1.3",
        "upstream":"10.88.0.4:9080","upstream_local":"127.0.0.6:3000"}"#;

    #[test]
    fn only_whole_lines_of_standard_output_are_requests() {
        let line = LINE.replace('\n', "");
        let log = format!("T stderr F [warning] {{\nT stdout F {line}\nT stdout F {{\"listener\":\"inb");
        let found = requests(&log).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].status, found[0].flags.as_deref()), (Some(200), None));
        assert_eq!(found[0].original_dst, "10.88.0.4:9080".parse().unwrap());
    }

    #[test]
    fn a_line_that_is_no_request_is_shown() {
        let error = requests("T stdout F nonsense\n").unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
    }
}
