//! The node before anything of ours is on it, and a kubelet that makes pods from what Helm renders.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use apiserver::ApiServer;
use harness::User;
use harness::runtime::cri::Executed;
use harness::runtime::cri::messages::*;
use harness::runtime::image::IMAGE;
use harness::runtime::{CGROUPS, Setup, meshed, tool};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use redirect_deploy_tests::helm::{self, Rendered, strings};

/// The node's address in the pods' network.
pub(crate) const ADDRESS: &str = "10.88.0.1";
/// Its name.
pub(crate) const NAME: &str = "node-1";
/// What the injector writes into a pod with a sidecar.
pub(crate) const INJECTED: (&str, &str) =
    ("sidecar.istio.io/status", r#"{"initContainers":null,"containers":["istio-proxy"]}"#);

/// A file that `cargo xtask dist` has made.
pub(crate) fn shipped(name: &str) -> Result<PathBuf> {
    let debug = harness::binary("redirect").canonicalize()?;
    let path = debug.ancestors().nth(2).context("target")?.join("dist").join(name);
    ensure!(path.is_file(), "there is no {}: run `cargo xtask dist`", path.display());
    Ok(path)
}

/// The name of the image's archive.
pub(crate) fn image() -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!("redirect-cni-{}-{architecture}.oci.tar", env!("CARGO_PKG_VERSION"))
}

/// What the kubelet names the cgroup of a pod after.
fn uid(name: &str) -> String {
    format!("{name}-0000-4000-8000-000000000001")
}

/// The node.
pub(crate) struct Node {
    pub(crate) api: ApiServer,
    runtime: harness::runtime::Node,
    dir: PathBuf,
    port: u16,
}

/// A sandbox and, where it has one, its container.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) sandbox: String,
    pub(crate) ip: String,
    pub(crate) container: Option<String>,
}

impl Node {
    /// Makes it, with a chain of plugins that ours is not in.
    pub(crate) fn start(dir: &Path, cgroup: &Path) -> Result<Node> {
        // As on a node: what is mounted later is seen by containers that ask for it.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?;
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let setup =
            Setup { dir, cgroup, release: None, version: "1.0.0", conf: json!({}), instead_of_plugin: None };
        let runtime = harness::runtime::Node::start(&setup)?;
        let node = Node { api: ApiServer::start(), runtime, dir: dir.to_owned(), port: 6443 };
        node.take_ours_out()?;
        Ok(node)
    }

    /// The directory of network configurations.
    pub(crate) fn conf_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The directory of plugins.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// The list that the runtime takes.
    pub(crate) fn list(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.conf_dir().join("10-mesh.conflist"))?)?)
    }

    /// The runtime's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("containerd/c.sock")
    }

    /// The file with the entry's keys.
    pub(crate) fn entry(&self) -> PathBuf {
        self.dir.join("config-map/entry.json")
    }

    fn take_ours_out(&self) -> Result<()> {
        let mut list = self.list()?;
        list["plugins"].as_array_mut().context("plugins")?.retain(|plugin| plugin["type"] != "redirect-cni");
        // At once: the runtime looks at each write.
        let fresh = self.conf_dir().join(".new");
        fs::write(&fresh, list.to_string())?;
        fs::rename(fresh, self.conf_dir().join("10-mesh.conflist"))?;
        Ok(fs::remove_file(self.bin_dir().join("redirect-cni"))?)
    }

    /// Lets the runtime have an image from an archive.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        self.ctr(&[OsStr::new("import"), archive.as_ref()])
    }

    /// Gives an image that the runtime has another name.
    pub(crate) fn tag(&self, from: &str, to: &str) -> Result<()> {
        self.ctr(&["tag", from, to])
    }

    fn ctr(&self, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(self.socket()).args(["-n", "k8s.io", "images"]).args(arguments);
        let output = ctr.output().context("starting ctr")?;
        ensure!(output.status.success(), "{ctr:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Lets pods reach the API server at the node's address.
    pub(crate) fn open_api_server(&self) -> Result<()> {
        let listener =
            TcpListener::bind((ADDRESS, self.port)).context("the bridge has the node's address")?;
        let to = self.api.port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || pass_on(client, server));
                std::thread::spawn(move || pass_on(server2, client2));
            }
        });
        Ok(())
    }

    /// A sandbox, with the plugins' ADD.
    pub(crate) fn sandbox(&self, name: &str, annotations: &[(&str, &str)], pid: i32) -> Result<Pod> {
        let parent = format!("/kubepods/burstable/pod{}", uid(name));
        self.runtime.make_cgroup(&parent)?;
        let config = self.sandbox_config(name, annotations, pid, parent);
        let sandbox = self.runtime.cri().run_sandbox(config)?;
        let ip = self.runtime.cri().addresses(&sandbox)?.into_iter().next().unwrap_or_default();
        Ok(Pod { name: name.to_owned(), sandbox, ip, container: None })
    }

    fn sandbox_config(
        &self,
        name: &str,
        annotations: &[(&str, &str)],
        pid: i32,
        cgroup_parent: String,
    ) -> PodSandboxConfig {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let namespace = if name == "agent" { helm::NAMESPACE } else { "shop" };
        let options =
            NamespaceOption { network: NAMESPACE_POD, pid, ipc: NAMESPACE_POD, target_id: String::new() };
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: uid(name), namespace: namespace.into(), attempt: 0 };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: self.runtime.logs().display().to_string(),
            port_mappings: Vec::new(),
            labels: HashMap::new(),
            annotations: annotations.iter().map(owned).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent,
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(options) }),
            }),
        }
    }

    /// A container that only runs, so that the pod is not empty.
    pub(crate) fn fill(&self, pod: &mut Pod) -> Result<()> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "web".into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into() }),
            log_path: format!("{}.log", pod.name),
            ..ContainerConfig::default()
        };
        self.start_container(pod, config, NAMESPACE_CONTAINER)
    }

    /// A sidecar and an application ([`tool`]) in a pod.
    pub(crate) fn mesh(&self, pod: &mut Pod) -> Result<()> {
        let namespaces = || NamespaceOption { pid: NAMESPACE_CONTAINER, ..NamespaceOption::default() };
        let log = self.sidecar_log(pod).file_name().and_then(OsStr::to_str).map(str::to_owned);
        let log = log.context("a name")?;
        let serve = vec![tool::PATH.to_owned(), "serve".to_owned()];
        let sidecar =
            meshed::container(("istio-proxy", 0), &log, meshed::envoy_command(), User::PROXY, namespaces())?;
        let app =
            meshed::container(("app", 0), &format!("{}.log", pod.name), serve, User::APP, namespaces())?;
        self.start_container(pod, sidecar, NAMESPACE_CONTAINER)?;
        self.start_container(pod, app, NAMESPACE_CONTAINER)
    }

    /// The log of a pod's sidecar.
    pub(crate) fn sidecar_log(&self, pod: &Pod) -> PathBuf {
        self.runtime.logs().join(format!("{}-istio-proxy.log", pod.name))
    }

    /// The directory that the node was made in.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn start_container(&self, pod: &mut Pod, config: ContainerConfig, pid: i32) -> Result<()> {
        let parent = format!("/kubepods/burstable/pod{}", uid(&pod.name));
        let sandbox = self.sandbox_config(&pod.name, &[], pid, parent);
        pod.container = Some(self.runtime.cri().start_container(&pod.sandbox, config, sandbox)?);
        Ok(())
    }

    /// The agent's pod as the DaemonSet describes it.
    pub(crate) fn agent(&self, chart: &Rendered) -> Result<Pod> {
        ensure!(chart.pod()["hostPID"] == true && chart.pod()["hostNetwork"].is_null(), "{}", chart.pod());
        let mut pod = self.sandbox("agent", &[], NAMESPACE_NODE)?;
        self.open_api_server()?;
        self.start_container(&mut pod, self.container(chart)?, NAMESPACE_NODE)?;
        Ok(pod)
    }

    fn container(&self, chart: &Rendered) -> Result<ContainerConfig> {
        let spec = chart.container();
        let context = &spec["securityContext"];
        let texts = |value: &Value| strings(value).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let number = |key: &str| context[key].as_i64().map(|value| Int64Value { value });
        let security = LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: texts(&context["capabilities"]["add"]),
                drop_capabilities: texts(&context["capabilities"]["drop"]),
            }),
            privileged: context["privileged"] == true,
            namespace_options: Some(NamespaceOption {
                network: NAMESPACE_POD,
                pid: NAMESPACE_NODE,
                ipc: NAMESPACE_POD,
                target_id: String::new(),
            }),
            run_as_user: number("runAsUser"),
            run_as_group: number("runAsGroup"),
            readonly_rootfs: context["readOnlyRootFilesystem"] == true,
            no_new_privs: context["allowPrivilegeEscalation"] == false,
            seccomp: Some(SecurityProfile::default()),
        };
        let envs = [
            ("NODE_NAME", NAME.to_owned()),
            ("KUBERNETES_SERVICE_HOST", ADDRESS.to_owned()),
            ("KUBERNETES_SERVICE_PORT", self.port.to_string()),
        ];
        let linux = LinuxContainerConfig { resources: None, security_context: Some(security) };
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: "agent".into(), attempt: 0 }),
            image: Some(ImageSpec { image: spec["image"].as_str().context("an image")?.into() }),
            args: texts(&spec["args"]),
            envs: envs.map(|(key, value)| KeyValue { key: key.into(), value }).to_vec(),
            mounts: self.mounts(chart)?,
            log_path: "agent.log".into(),
            linux: Some(linux),
            ..ContainerConfig::default()
        })
    }

    /// Volumes as the kubelet makes them: the node's directories, of which those of the network are this
    /// test's, the ConfigMap, and the service account.
    fn mounts(&self, chart: &Rendered) -> Result<Vec<Mount>> {
        let volumes = chart.pod()["volumes"].as_array().context("volumes")?;
        let mut mounts = Vec::new();
        for mount in chart.container()["volumeMounts"].as_array().context("mounts")? {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context("a volume")?;
            let from = match (mount["name"].as_str(), volume["hostPath"]["path"].as_str()) {
                (Some("cni-bin"), _) => self.bin_dir(),
                (Some("cni-conf"), _) => self.conf_dir(),
                (_, Some(path)) => PathBuf::from(path),
                _ => self.config_map(chart)?,
            };
            if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                fs::create_dir_all(&from)?;
            }
            let propagation =
                if mount["mountPropagation"] == "HostToContainer" { HOST_TO_CONTAINER } else { 0 };
            mounts.push(Mount {
                container_path: mount["mountPath"].as_str().context("a path")?.into(),
                host_path: from.display().to_string(),
                readonly: mount["readOnly"] == true,
                propagation,
            });
        }
        let account = self.dir.join("account");
        fs::create_dir(&account)?;
        self.api.service_account(&account);
        mounts.push(Mount {
            container_path: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
            host_path: account.display().to_string(),
            readonly: true,
            propagation: 0,
        });
        Ok(mounts)
    }

    fn config_map(&self, chart: &Rendered) -> Result<PathBuf> {
        let dir = self.dir.join("config-map");
        fs::create_dir(&dir)?;
        fs::write(dir.join("entry.json"), chart.entry().to_string())?;
        Ok(dir)
    }

    /// A command in a pod's container.
    pub(crate) fn exec(&self, pod: &Pod, command: &[&str]) -> Result<Executed> {
        self.runtime.cri().exec(pod.container.as_ref().context("a container")?, command)
    }

    /// What `redirect` in the agent's container prints as JSON.
    pub(crate) fn redirect(&self, agent: &Pod, arguments: &[&str]) -> Result<Value> {
        let command = [&["/usr/bin/redirect", "--output", "json"], arguments].concat();
        let done = self.exec(agent, &command)?;
        serde_json::from_str(&done.stdout).with_context(|| format!("redirect {arguments:?}: {done:?}"))
    }

    /// Ends the agent's container as the kubelet does at last.
    pub(crate) fn kill(&self, pod: &Pod) -> Result<()> {
        self.runtime.cri().kill_container(pod.container.as_ref().context("a container")?)
    }

    /// Ends a pod.
    pub(crate) fn end(&self, pod: &Pod) -> Result<()> {
        self.runtime.cri().remove_sandbox(&pod.sandbox)?;
        let cgroup = format!("{CGROUPS}/kubepods/burstable/pod{}", uid(&pod.name));
        let _ = fs::remove_dir(cgroup);
        Ok(())
    }

    /// What to look at when it has failed.
    pub(crate) fn how_it_went(&self) -> String {
        let log = fs::read_to_string(self.runtime.logs().join("agent.log")).unwrap_or_default();
        format!("{}\nthe agent's log:\n{log}", self.runtime.complaints())
    }

    /// The uid that the kubelet gave a pod.
    pub(crate) fn uid(&self, pod: &str) -> String {
        uid(pod)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// An HTTP probe: the status, and the text.
pub(crate) fn probe(ip: &str, port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream =
        TcpStream::connect_timeout(&format!("{ip}:{port}").parse().ok()?, Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}
