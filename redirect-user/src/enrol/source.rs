//! Where the plugin learns what a pod is made of: its containers, their proxy identity, its labels.
//!
//! Two sources answer the same question. [`AskRuntime`](super::ask_runtime) works from what the runtime
//! already handed over. [`AskAgent`](super::ask_agent) asks the node's agent over its Unix socket;
//! [`protocol`](super::protocol) has the words. The other side is the crate `redirect-agent`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::enrol::proxy_config::PROXY_CONFIG;
use crate::ids::PodRef;
use crate::policy::annotations::Annotations;

/// What decides about enrolment and policy, and no more: a pod's secrets do not travel.
///
/// The containers must be there: an answer without them would look like a pod without a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodDetails {
    /// Its uid; the runtime's, where the API's differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// It shares the node's network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default)]
    pub annotations: Annotations,
    /// Its containers, init containers first.
    pub containers: Vec<Container>,
    /// `spec.runtimeClassName`, where the source knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// `containers` may lack some that the source cannot see.
    #[serde(default)]
    pub partial: bool,
}

/// One container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Which list it stands in, and whether it stays.
    pub kind: ContainerKind,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Those of its variables in [`VARIABLES`] that have a literal value.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `securityContext.runAsUser` of the container itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    /// `securityContext.runAsGroup` of the container itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<u32>,
}

/// Which list of the pod a container stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerKind {
    /// `initContainers`, and it ends before the application begins.
    Init,
    /// `initContainers` with `restartPolicy: Always`: a native sidecar, which stays.
    Sidecar,
    /// `containers`.
    #[default]
    Regular,
}

/// The annotation that the injector leaves behind; its presence means that the pod has a sidecar.
pub const STATUS: &str = "sidecar.istio.io/status";
/// `DISABLE_ENVOY`: the sidecar runs no Envoy (proxyless gRPC).
pub const DISABLE_ENVOY: &str = "DISABLE_ENVOY";
/// `ISTIO_META_DNS_CAPTURE`: the sidecar answers DNS.
pub const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";
/// The variables of a container that decide anything.
pub const VARIABLES: [&str; 2] = [DISABLE_ENVOY, DNS_CAPTURE];

/// Something that knows pods.
pub trait PodSource {
    /// What `pod` is made of; `handed_over` are the annotations that the runtime passed to the plugin, if it
    /// did.
    fn details(&self, pod: &PodRef, handed_over: Option<&Annotations>) -> Result<PodDetails, Error>;

    /// Whether it would answer now; what is wrong, in words, if not.
    ///
    /// # Errors
    /// Why it would not.
    fn answers(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Why a pod's details are not available.
#[derive(Debug, Error)]
pub enum Error {
    /// The source without a network needs the runtime's help.
    #[error(
        "the runtime did not hand over the annotations of pod {pod}: the plugin's configuration must ask for them \
         (\"capabilities\": {{\"io.kubernetes.cri.pod-annotations\": true}}) and the runtime must know the capability \
         (containerd does since 1.6); else use \"podSource\": \"kubernetes\""
    )]
    NotHandedOver {
        /// The pod.
        pod: Box<PodRef>,
    },
    /// The injector's record of what it injected cannot be read.
    #[error("annotation {annotation}={value:?} of pod {pod} is not the injector's JSON: {source}", annotation = STATUS)]
    Status {
        /// The pod.
        pod: Box<PodRef>,
        /// The value, cut if it is long.
        value: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// What the pod's owner configures about the proxy cannot be read.
    #[error("annotation {annotation}={value:?} of pod {pod} is no ProxyConfig: {problem}", annotation = PROXY_CONFIG)]
    ProxyConfig {
        /// The pod.
        pod: Box<PodRef>,
        /// The value, cut if it is long.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There was no answer at the socket.
    #[error("{asked} and could not {step}: {source}; is the redirect-cni agent running on this node?")]
    Unreachable {
        /// The question.
        asked: Box<AgentRequest>,
        /// Connect, send or receive.
        step: &'static str,
        /// Why that failed last.
        source: std::io::Error,
    },
    /// The agent does not know the pod, not even after waiting for it.
    #[error("{asked}: {message}")]
    NotFound {
        /// The question.
        asked: Box<AgentRequest>,
        /// The agent's words.
        message: String,
    },
    /// The agent knows that it cannot answer.
    #[error("{asked}, and it failed: {message}")]
    Failed {
        /// The question.
        asked: Box<AgentRequest>,
        /// The agent's words.
        message: String,
    },
    /// What came back is not an answer.
    #[error("{asked} and got an unusable answer: {problem}")]
    Garbage {
        /// The question.
        asked: Box<AgentRequest>,
        /// What is wrong with the answer.
        problem: String,
    },
}

/// What was asked, where and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRequest {
    /// The pod.
    pub pod: PodRef,
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long the plugin waited in all.
    pub waited: Duration,
}

impl std::fmt::Display for AgentRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AgentRequest { pod, socket, waited } = self;
        write!(f, "asked the agent at {} for pod {pod} for {waited:.1?}", socket.display())
    }
}

impl Error {
    /// Whether the same request may succeed later without anybody changing the pod or the configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::NotFound { .. } | Error::Failed { .. })
    }
}
