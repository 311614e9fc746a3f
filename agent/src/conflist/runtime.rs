//! The container runtime's own answer to where it looks: the CRI's Status call over its socket. containerd
//! answers with its whole configuration; CRI-O does not, and is known by its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde_json::Value;
use tokio::time::timeout;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

/// Sockets of containerd, below the node's root: its own, and those of k3s, rke2 and MicroK8s.
const SOCKETS: [&str; 3] = [
    "run/containerd/containerd.sock",
    "run/k3s/containerd/containerd.sock",
    "var/snap/microk8s/common/run/containerd.sock",
];
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// `runtime.v1.StatusRequest`
#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

/// `runtime.v1.StatusResponse`, of which the extra information is wanted.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// What a runtime says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) conf_dir: PathBuf,
    pub(super) bin_dir: PathBuf,
    /// Its socket.
    pub(super) socket: PathBuf,
}

/// Asks the runtime of the node whose root directory is at `root`, at `socket` or where one usually is. None
/// where none answers in time, or not with directories. Must not be called from a task of tokio.
pub(super) fn ask(root: &Path, socket: Option<&Path>) -> Option<Said> {
    let usual = SOCKETS.iter().map(|path| root.join(path)).find(|path| path.exists());
    let socket = socket.map(Path::to_owned).or(usual)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let info = runtime.block_on(async { timeout(PATIENCE, status(&socket)).await.ok()? })?;
    let (conf_dir, bin_dir) = directories(info.get("config")?)?;
    Some(Said { conf_dir, bin_dir, socket })
}

async fn status(socket: &Path) -> Option<HashMap<String, String>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).ok()?;
    let mut client = Grpc::new(endpoint.connect().await.ok()?);
    client.ready().await.ok()?;
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Status");
    let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
    let answer = client.unary(Request::new(StatusRequest { verbose: true }), path, codec).await.ok()?;
    Some(answer.into_inner().info)
}

/// `binDir` is what containerd 1 says, `binDirs` containerd 2.
fn directories(config: &str) -> Option<(PathBuf, PathBuf)> {
    let config: Value = serde_json::from_str(config).ok()?;
    let cni = &config["cni"];
    let path = |value: &Value| value.as_str().filter(|path| path.starts_with('/')).map(PathBuf::from);
    let bin = path(&cni["binDirs"][0]).or_else(|| path(&cni["binDir"]))?;
    Some((path(&cni["confDir"])?, bin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_containerd_are_understood() {
        let both = |conf: &str, bin: &str| Some((PathBuf::from(conf), PathBuf::from(bin)));
        let first = r#"{"cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d","maxConfNum":1}}"#;
        assert_eq!(directories(first), both("/etc/cni/net.d", "/opt/cni/bin"));
        let second = r#"{"cni":{"binDir":"","binDirs":["/x/bin","/y"],"confDir":"/x/net.d"}}"#;
        assert_eq!(directories(second), both("/x/net.d", "/x/bin"));
        for other in ["{}", "not json", r#"{"cni":{"binDir":"bin","confDir":"/x"}}"#] {
            assert_eq!(directories(other), None, "{other}");
        }
    }

    #[test]
    fn a_runtime_that_does_not_answer_is_no_answer() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(ask(root.path(), None), None);
        let socket = root.path().join("c.sock");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(ask(root.path(), Some(&socket)), None);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
}
