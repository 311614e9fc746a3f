//! The way to the API server: where it is, who we are, and a client that is made again when the server no
//! longer knows us.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may keep silent on a request or a watch. It sends a bookmark about once a minute, so a
/// watch that is silent for longer has lost its connection without anybody saying so.
const SILENCE: Duration = Duration::from_secs(90);

/// Where the credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The service account of the pod that the agent runs in.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why there is no way to the API server.
#[derive(Debug, Error)]
pub enum Error {
    /// The service account cannot be used.
    #[error(
        "cannot use the pod's service account: {0}; outside a cluster name a file with --kubeconfig, and without an \
         API server a folder of manifests with --pods"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// The client cannot be made.
    #[error("cannot make a client for {url}: {source}")]
    Client {
        /// The server.
        url: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl Access {
    /// A client. Its token is read again about once a minute where it comes from a file.
    ///
    /// # Errors
    /// The credentials cannot be read or make no sense.
    pub async fn client(&self) -> Result<Client, Error> {
        let mut config = match self {
            Access::InCluster => Config::incluster().map_err(Error::InCluster)?,
            Access::Kubeconfig(path) => {
                let failed = |source| Error::Kubeconfig { path: path.clone(), source };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
            }
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        let url = config.cluster_url.to_string();
        Client::try_from(config).map_err(|source| Error::Client { url, source: Box::new(source) })
    }
}

/// Whether the server says that it does not know us: the token has expired, or was replaced.
#[must_use]
pub fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}
