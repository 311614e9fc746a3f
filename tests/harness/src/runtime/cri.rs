//! The part of a kubelet that talks to the container runtime: the Container Runtime Interface, version
//! `runtime.v1`, with the calls and fields that are needed here. [`messages`] has what is sent.

#[expect(missing_docs, reason = "names and meanings are those of the protocol's own file")]
pub mod messages;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use messages::*;

/// How long the runtime may take for one call.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a container runtime. Calls may be made from several threads. They fail with the words of
/// the runtime if it refuses, and if it does not answer in time.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// How a command ended that was run in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Its exit status.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Cri {
    /// Connects to the runtime's socket.
    pub fn connect(socket: &Path) -> Result<Cri> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().context("starting a runtime")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime.block_on(endpoint.connect());
        let channel = channel.with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Cri { runtime, channel })
    }

    /// The runtime's name and version.
    pub fn version(&self) -> Result<String> {
        let answer: VersionResponse = self.call("Version", VersionRequest { version: "v1".into() })?;
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// Whether it says that it, and its network, are ready.
    pub fn is_ready(&self) -> Result<bool> {
        let answer: StatusResponse = self.call("Status", StatusRequest { verbose: false })?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let mut needed = ["RuntimeReady", "NetworkReady"].into_iter();
        Ok(needed.all(|kind| conditions.iter().any(|condition| condition.r#type == kind && condition.status)))
    }

    /// Makes a sandbox; this is when the runtime calls the CNI plugins with ADD. Returns its id.
    pub fn run_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        Ok(self.call::<_, SandboxId>("RunPodSandbox", request)?.pod_sandbox_id)
    }

    /// The sandbox's IPv4 and further addresses.
    pub fn addresses(&self, sandbox: &str) -> Result<Vec<String>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", request)?;
        let network = answer.status.unwrap_or_default().network.unwrap_or_default();
        Ok([network.ip].into_iter().chain(network.additional_ips.into_iter().map(|one| one.ip)).collect())
    }

    /// Stops a sandbox and everything in it, and removes it; the plugins are called with DEL.
    pub fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let id = SandboxId { pod_sandbox_id: sandbox.into() };
        self.call::<_, Empty>("StopPodSandbox", id.clone())?;
        self.call::<_, Empty>("RemovePodSandbox", id).map(drop)
    }

    /// Makes a container and starts it. Returns its id.
    pub fn start_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let id: ContainerId = self.call("CreateContainer", request)?;
        self.call::<_, Empty>("StartContainer", id.clone())?;
        Ok(id.container_id)
    }

    /// Kills a container with SIGKILL and removes it.
    pub fn kill_container(&self, container: &str) -> Result<()> {
        let stop = StopContainerRequest { container_id: container.into(), timeout: 0 };
        self.call::<_, Empty>("StopContainer", stop)?;
        self.call::<_, Empty>("RemoveContainer", ContainerId { container_id: container.into() }).map(drop)
    }

    /// All containers of a sandbox, in the order in which they were made: name, and whether it runs.
    pub fn containers(&self, sandbox: &str) -> Result<Vec<(String, bool)>> {
        let filter = ContainerFilter { pod_sandbox_id: sandbox.into() };
        let answer: ListContainersResponse =
            self.call("ListContainers", ListContainersRequest { filter: Some(filter) })?;
        let mut containers = answer.containers;
        containers.sort_by_key(|container| container.created_at);
        let name = |container: &Container| container.metadata.clone().unwrap_or_default().name;
        Ok(containers
            .iter()
            .map(|container| (name(container), container.state == CONTAINER_RUNNING))
            .collect())
    }

    /// Runs a command in a container.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Executed> {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: PATIENCE.as_secs().try_into()?,
        };
        let answer: ExecSyncResponse =
            self.call("ExecSync", request).with_context(|| format!("running {command:?}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Executed { code: answer.exit_code, stdout: text(answer.stdout), stderr: text(answer.stderr) })
    }

    /// One call, from the calling thread.
    pub fn call<Req, Res>(&self, method: &str, message: Req) -> Result<Res>
    where
        Req: Message + Default + 'static,
        Res: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let mut client = Grpc::new(self.channel.clone());
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        let answer = self.runtime.block_on(async {
            client.ready().await.context("waiting for the connection")?;
            let codec = ProstCodec::<Req, Res>::default();
            client.unary(request, path, codec).await.map_err(|status| anyhow::anyhow!("{}", status.message()))
        });
        Ok(answer.with_context(|| format!("the container runtime refused {method}"))?.into_inner())
    }
}
