//! What `redirect explain` is asked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use redirect_common::Protocol;
use redirect_user::attach::record::Attachment;
use redirect_user::explain::{self, Explanation, Question};

/// `redirect explain`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["id", "from"]))]
#[command(group = clap::ArgGroup::new("direction").args(["dst", "inbound"]))]
pub(crate) struct Args {
    /// Container id, a unique beginning of it, or NAMESPACE/POD.
    pub(super) id: Option<String>,
    /// A manifest instead, YAML or JSON: would its pod be enrolled, and what would happen then?
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// With --from: as if the sidecar injector had added the sidecar.
    #[arg(long, requires = "from")]
    pub(super) assume_injected: bool,
    /// With --from: keys of the plugin's configuration, as a JSON object, or a file with one.
    #[arg(long, value_name = "JSON|FILE", requires = "from")]
    pub(super) plugin_conf: Option<String>,
    /// Outbound: what is dialled, `10.0.0.1:80`, `[fd00::1]:80`, or a name as the pod knows it,
    /// `reviews:9080`.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) dst: Option<String>,
    /// Outbound: UDP instead of TCP.
    #[arg(long, requires = "dst")]
    pub(super) udp: bool,
    /// Outbound: the caller's uid, as the pod sees it.
    #[arg(long, requires = "dst", default_value_t = 0)]
    pub(super) uid: u32,
    /// Outbound: the caller's gid, as the pod sees it.
    #[arg(long, requires = "dst", default_value_t = 0)]
    pub(super) gid: u32,
    /// Outbound: the address that the caller's socket is bound to.
    #[arg(long, requires = "dst", value_name = "IP")]
    pub(super) src: Option<IpAddr>,
    /// Inbound: a port of the pod.
    #[arg(long, value_name = "PORT")]
    pub(super) inbound: Option<u16>,
    /// Inbound: index of the interface in the pod on which the connection arrives.
    #[arg(long, requires = "inbound", value_name = "INDEX")]
    pub(super) interface: Option<u32>,
}

impl Args {
    /// What would happen to the connection that they tell of.
    pub(super) fn outbound(&self, attachment: &Attachment, dst: SocketAddr) -> Explanation {
        let protocol = if self.udp { Protocol::Udp } else { Protocol::Tcp };
        explain::outbound(
            attachment,
            &Question { protocol, dst, src: self.src, uid: self.uid, gid: self.gid },
        )
    }
}
