//! A pod as the API serves it, cut to the fields that decide anything: what is not named here is skipped
//! while the answer is read, so that neither secrets nor size of other fields reach the agent's memory.
//!
//! Manifests in files and the watch on the API server share this shape.

#[cfg(test)]
mod shapes;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod as FullPod;
use kube::Resource;
use kube::api::ObjectMeta;
use redirect_user::enrol::source::{Container, ContainerKind, PodDetails, VARIABLES};
use redirect_user::ids::PodRef;
use serde::Deserialize;

/// Where the API shows a static pod's own uid, under which the kubelet starts it.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// Names, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it is made of.
    #[serde(default)]
    pub spec: Spec,
    /// How it is doing.
    #[serde(default)]
    pub status: Status,
}

/// `spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    host_network: bool,
    runtime_class_name: Option<String>,
    init_containers: Vec<ContainerSpec>,
    containers: Vec<ContainerSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerSpec {
    name: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    restart_policy: Option<String>,
    security_context: Option<SecurityContext>,
}

/// A variable; `valueFrom` leaves the value away, and Istio reads it as empty.
#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
}

/// `status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    /// How each init container is doing.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// How each container is doing.
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: Option<IpAddr>,
}

/// How a container is doing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// `runtime://id`
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its state now.
    pub state: State,
    /// Its state before the last restart.
    pub last_state: State,
}

/// A container's state, as far as it has ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    /// It runs.
    pub running: Option<serde::de::IgnoredAny>,
    /// It has ended.
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// For people.
    pub message: String,
    /// `Completed`, `Error`, ...
    pub reason: String,
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        FullPod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        FullPod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        FullPod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        FullPod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Pod {
    /// Its namespace; a manifest may leave it away.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The uid under which the runtime knows it: for a static pod its hash, else the API's.
    #[must_use]
    pub fn runtime_uid(&self) -> Option<&str> {
        self.hash().or(self.metadata.uid.as_deref())
    }

    /// The pod, with the uid under which the runtime knows it.
    #[must_use]
    pub fn reference(&self) -> PodRef {
        PodRef {
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            uid: self.runtime_uid().map(str::to_owned),
        }
    }

    fn hash(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(CONFIG_HASH).map(String::as_str)
    }

    /// Whether this is the pod that is asked for. A manifest without a uid is any pod of that name; else the
    /// uid is the API's or, for a static pod, its hash.
    #[must_use]
    pub fn is(&self, wanted: &PodRef) -> bool {
        let known: Vec<&str> = self.metadata.uid.as_deref().into_iter().chain(self.hash()).collect();
        let same_uid = |uid: &String| known.is_empty() || known.contains(&uid.as_str());
        self.namespace() == wanted.namespace
            && self.name() == wanted.name
            && wanted.uid.as_ref().is_none_or(same_uid)
    }

    /// Whether it has come to its end: such a pod has no process and gets none.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Its addresses, as far as the API knows them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.status.pod_ips.iter().filter_map(|address| address.ip).collect()
    }

    /// What decides about enrolment and policy.
    #[must_use]
    pub fn details(&self) -> PodDetails {
        let init = self.spec.init_containers.iter().map(|container| {
            let stays = container.restart_policy.as_deref() == Some("Always");
            container.details(if stays { ContainerKind::Sidecar } else { ContainerKind::Init })
        });
        let regular = self.spec.containers.iter().map(|container| container.details(ContainerKind::Regular));
        PodDetails {
            // The cgroup of a static pod is named after its hash.
            uid: self.runtime_uid().map(str::to_owned),
            host_network: self.spec.host_network,
            runtime_class: self.spec.runtime_class_name.clone(),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            containers: init.chain(regular).collect(),
            partial: false,
        }
    }

    /// Drops what the agent never looks at again. A pod is kept for as long as it is on the node.
    pub fn shrink(&mut self) {
        let keep = ObjectMeta {
            name: self.metadata.name.take(),
            namespace: self.metadata.namespace.take(),
            uid: self.metadata.uid.take(),
            resource_version: self.metadata.resource_version.take(),
            labels: self.metadata.labels.take(),
            annotations: self.metadata.annotations.take(),
            deletion_timestamp: self.metadata.deletion_timestamp.take(),
            ..ObjectMeta::default()
        };
        self.metadata = keep;
        for container in self.spec.init_containers.iter_mut().chain(&mut self.spec.containers) {
            container.env.retain(Variable::decides);
        }
    }
}

impl Variable {
    fn decides(&self) -> bool {
        VARIABLES.contains(&self.name.as_str())
    }
}

impl ContainerSpec {
    fn details(&self, kind: ContainerKind) -> Container {
        let context = self.security_context.as_ref();
        let env: BTreeMap<String, String> = self
            .env
            .iter()
            .filter(|variable| variable.decides())
            .map(|variable| (variable.name.clone(), variable.value.clone().unwrap_or_default()))
            .collect();
        Container {
            name: self.name.clone(),
            kind,
            args: self.args.clone(),
            env,
            run_as_user: context.and_then(|context| context.run_as_user),
            run_as_group: context.and_then(|context| context.run_as_group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_keeps_of_a_pod_has_no_secret_in_it() {
        let text = serde_json::json!({
            "metadata": { "name": "web-0", "namespace": "shop", "uid": "11",
                          "managedFields": [{ "manager": "kubectl" }],
                          "annotations": { "sidecar.istio.io/status": "{}" } },
            "spec": { "containers": [{ "name": "web", "env": [{ "name": "PASSWORD", "value": "hunter2" }] }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }],
                        "initContainerStatuses": [{ "name": "istio-validation",
                            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                            "lastState": { "terminated": { "exitCode": 126, "reason": "Error" } } }] },
        });
        let mut pod: Pod = serde_json::from_value(text).unwrap();
        pod.shrink();
        let all = format!("{pod:?}");
        assert!(!all.contains("hunter2") && !all.contains("kubectl"), "{all}");
        assert_eq!(pod.addresses().len(), 2);
        let last = &pod.status.init_container_statuses[0].last_state;
        assert_eq!(last.terminated.as_ref().unwrap().exit_code, 126);
        assert!(!pod.ended() && pod.is(&pod.reference()));
    }
}
