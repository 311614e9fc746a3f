//! The access log: what an Envoy says about each connection that it carried, as a type.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::extension::typed;

/// One finished connection (or HTTP request) as Envoy logged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The filter chain's listener that logged it, for example `virtualOutbound` or `virtualInbound6`.
    pub listener: String,
    /// Where the connection was going before it was captured: what `SO_ORIGINAL_DST` answered, or, where it
    /// answered nothing, the accepted socket's own address.
    pub original_dst: SocketAddr,
    /// The accepted socket's own address (`getsockname`), restored or not.
    pub accepted_at: SocketAddr,
    /// Who connected: the accepted socket's peer.
    pub client: SocketAddr,
    /// Where Envoy connected on the client's behalf; none when it did not.
    pub upstream: Option<SocketAddr>,
    /// The source address of that connection.
    pub upstream_local: Option<SocketAddr>,
    /// The cluster that it belongs to.
    pub cluster: Option<String>,
    /// Envoy's response flags: why a connection failed; none for a good one.
    pub flags: Option<String>,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// HTTP method and path, from HTTP listeners.
    pub method: Option<String>,
    /// See `method`.
    pub path: Option<String>,
    /// HTTP status.
    pub status: Option<u16>,
}

impl Entry {
    /// Reads one line of the log.
    ///
    /// # Errors
    /// If the line is not an entry; the message carries the line.
    pub fn parse(line: &str) -> Result<Entry> {
        let mut entry: Entry = serde_json::from_str(line)
            .with_context(|| format!("this line is no access log entry: {line}"))?;
        // Envoy prints "-" for "no flags", unlike for other missing values.
        entry.flags = entry.flags.filter(|flags| flags != "-");
        // HTTP requests that Envoy answered itself have a status of 0 when there was none.
        entry.status = entry.status.filter(|status| *status != 0);
        Ok(entry)
    }
}

/// A logger to standard output whose lines [`Entry::parse`] reads.
pub(super) fn logger(listener: &str) -> Value {
    let fields = json!({
        "listener": listener,
        "original_dst": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "accepted_at": "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "upstream": "%UPSTREAM_HOST%",
        "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "flags": "%RESPONSE_FLAGS%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
    });
    let message = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
    let config = json!({ "log_format": { "json_format": fields } });
    json!([typed(message, "envoy.access_loggers.stdout", config)])
}
