//! The pods' specifications, as the requests that a kubelet makes of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use harness::User;
use harness::envoy::HEALTH_PORT;
use harness::runtime::cri::messages::*;
use harness::runtime::image::IMAGE;
use serde_json::json;

use crate::files::Files;
use crate::node::GATEWAY_HOST_PORT;
use crate::plan::{self, GATEWAY, GATEWAY_PORT, LEGACY, PORT, WORKLOADS};
use crate::proxy;

/// The name of the application's container.
pub(crate) const APP: &str = "app";
/// The name of the sidecar's container, by which it is known.
pub(crate) const PROXY: &str = "istio-proxy";
/// Where the applications' program is in containers.
pub(crate) const SERVICES_PATH: &str = "/bookinfo-services";
/// Where Envoy is.
const ENVOY_PATH: &str = "/envoy";
/// Libraries that programs of this machine need, mounted where they are here.
const LIBRARIES: [&str; 3] = ["/usr", "/lib", "/lib64"];

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Its namespace.
    pub(crate) namespace: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, the same for all its sandboxes.
    pub(crate) uid: String,
    /// Arguments of its application; none where there is no application.
    pub(crate) application: Option<Vec<&'static str>>,
    /// Whether it has an Envoy.
    pub(crate) proxy: bool,
    /// The injection template, where it is not the sidecar's.
    template: Option<&'static str>,
    /// A port of the node that leads to a port of the pod.
    port: Option<(u16, u16)>,
}

/// All pods: the mesh's, the gateway's, and the one that is left alone.
pub(crate) fn all() -> Vec<Spec> {
    let mesh = WORKLOADS.map(|workload| Spec {
        namespace: plan::NAMESPACE,
        name: workload.pod(),
        uid: String::new(),
        application: Some(workload.arguments()),
        proxy: true,
        template: None,
        port: None,
    });
    let gateway = Spec {
        namespace: GATEWAY.namespace,
        name: GATEWAY.pod.into(),
        uid: String::new(),
        application: None,
        proxy: true,
        template: Some("gateway"),
        port: Some((GATEWAY_HOST_PORT, GATEWAY_PORT)),
    };
    let legacy = Spec {
        namespace: LEGACY.namespace,
        name: LEGACY.pod.into(),
        uid: String::new(),
        application: Some(vec!["ratings"]),
        proxy: false,
        template: None,
        port: None,
    };
    let mut all: Vec<Spec> = mesh.into_iter().chain([gateway, legacy]).collect();
    for (number, spec) in (1..).zip(&mut all) {
        spec.uid = format!("b00c1f00-0000-4000-8000-{number:012}");
    }
    all
}

impl Spec {
    /// The names of its containers.
    pub(crate) fn containers(&self) -> Vec<&'static str> {
        let app = self.application.is_some().then_some(APP);
        app.into_iter().chain(self.proxy.then_some(PROXY)).collect()
    }

    /// What a readiness probe asks for.
    pub(crate) fn probe(&self, ip: Ipv4Addr) -> String {
        match (&self.application, self.proxy) {
            (Some(_), true) => format!("http://{ip}:{HEALTH_PORT}/healthz/ready"),
            (None, true) => format!("http://{ip}:{GATEWAY_PORT}{}", proxy::GATEWAY_HEALTH),
            (_, false) => format!("http://{ip}:{PORT}/health"),
        }
    }

    /// The name of the log of a container's `attempt`-th start.
    pub(crate) fn log_name(&self, container: &str, attempt: u32) -> String {
        format!("{}_{container}_{attempt}.log", self.name)
    }

    /// What the sidecar injector of Istio writes into a pod when its CNI plugin is in use.
    fn annotations(&self) -> BTreeMap<&'static str, String> {
        let status = json!({ "initContainers": null, "containers": [PROXY], "revision": "default" });
        let mut annotations = BTreeMap::from([
            ("istio.io/rev", "default".to_owned()),
            ("sidecar.istio.io/interceptionMode", "REDIRECT".to_owned()),
            ("sidecar.istio.io/status", status.to_string()),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "15020".to_owned()),
            ("traffic.sidecar.istio.io/includeInboundPorts", "*".to_owned()),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*".to_owned()),
        ]);
        if let Some(template) = self.template {
            annotations.insert("inject.istio.io/templates", template.to_owned());
        }
        annotations
    }

    /// The request for its sandbox.
    pub(crate) fn sandbox(&self, cgroup: &str, logs: &Path, attempt: u32) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.into(),
            attempt,
        };
        let port = |(host, pod): (u16, u16)| PortMapping {
            protocol: 0,
            container_port: pod.into(),
            host_port: host.into(),
            host_ip: String::new(),
        };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: self.name.clone(),
            log_directory: logs.display().to_string(),
            port_mappings: self.port.into_iter().map(port).collect(),
            labels: [("io.kubernetes.pod.uid".to_owned(), self.uid.clone())].into(),
            annotations: self.annotations().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup.into(),
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces()) }),
            }),
        }
    }

    /// The request for one of its containers.
    pub(crate) fn container(&self, name: &str, attempt: u32, files: &Files, envoy: &Path) -> ContainerConfig {
        let (command, user) = match name {
            PROXY => (envoy_command(), User::PROXY),
            _ => (self.application_command(), User::APP),
        };
        let mut mounts = common_mounts(files);
        if name == PROXY {
            mounts.push(mount(proxy::CERTIFICATES, &files.of_proxy(&self.name)));
            mounts.push(mount(proxy::ENDPOINTS, &files.endpoints()));
            mounts.push(mount(ENVOY_PATH, envoy));
        }
        let id = |value: u32| Some(Int64Value { value: value.into() });
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt }),
            image: Some(ImageSpec { image: IMAGE.into() }),
            command,
            args: Vec::new(),
            envs: Vec::new(),
            mounts,
            log_path: self.log_name(name, attempt),
            linux: Some(LinuxContainerConfig {
                resources: None,
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    run_as_user: id(user.uid),
                    run_as_group: id(user.gid),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
        }
    }

    fn application_command(&self) -> Vec<String> {
        let arguments = self.application.iter().flatten().copied();
        [SERVICES_PATH].into_iter().chain(arguments).map(str::to_owned).collect()
    }
}

/// Processes are a container's own, the network is the pod's.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NAMESPACE_POD,
        pid: NAMESPACE_CONTAINER,
        ipc: NAMESPACE_POD,
        target_id: String::new(),
    }
}

fn envoy_command() -> Vec<String> {
    let config = format!("{}/{}", proxy::CERTIFICATES, proxy::CONFIG_FILE);
    let line =
        [ENVOY_PATH, "-c", &config, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"];
    line.into_iter().chain(["--file-flush-interval-msec", "20"]).map(str::to_owned).collect()
}

fn common_mounts(files: &Files) -> Vec<Mount> {
    let libraries = LIBRARIES.into_iter().map(Path::new).filter(|path| path.exists());
    let mut mounts: Vec<_> = libraries.map(|path| mount(&path.display().to_string(), path)).collect();
    mounts.push(mount("/etc/hosts", &files.hosts()));
    mounts.push(mount("/etc/nsswitch.conf", &files.name_service()));
    mounts.push(mount(SERVICES_PATH, &harness::binary("bookinfo-services")));
    mounts
}

fn mount(inside: &str, outside: &Path) -> Mount {
    let host_path = outside.display().to_string();
    Mount { container_path: inside.into(), host_path, readonly: true, ..Mount::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_mesh_have_two_containers_and_uids_of_their_own() {
        let all = all();
        let mesh = all.iter().filter(|spec| spec.namespace == plan::NAMESPACE);
        assert_eq!(mesh.filter(|spec| spec.containers() == [APP, PROXY]).count(), plan::PODS);
        let mut uids: Vec<_> = all.iter().map(|spec| &spec.uid).collect();
        uids.dedup();
        assert_eq!(uids.len(), all.len());
    }

    #[test]
    fn every_pod_says_that_it_was_injected_and_only_the_gateway_names_a_template() {
        for spec in all() {
            let annotations = spec.annotations();
            assert!(annotations.contains_key("sidecar.istio.io/status"), "{}", spec.name);
            let template = annotations.get("inject.istio.io/templates").map(String::as_str);
            assert_eq!(template, (spec.name == GATEWAY.pod).then_some("gateway"));
        }
    }
}
