//! Every shape of pod that Istio's injector makes, for its versions 1.21 to 1.32: exactly the right ones are
//! enrolled, with the right policy, by the API server's word and by the runtime's annotations alone.

use redirect_user::enrol::ask_runtime::AskRuntime;
use redirect_user::enrol::source::{self, PodDetails, PodSource};
use redirect_user::enrol::{Enrolment, Rules, enrol};
use redirect_user::ids::PodRef;
use redirect_user::policy::annotations::Annotations;
use redirect_user::policy::{InterceptionMode, Policy, Proxy};
use serde_json::{Value, json};

use super::Pod;

/// Istio's minor versions.
const VERSIONS: std::ops::RangeInclusive<u32> = 21..=32;

/// One shape, and what is to become of it.
struct Shape {
    name: &'static str,
    pod: Value,
    /// The reason's label, `enrolled`, or a part of the error.
    expected: &'static str,
    /// The same where only annotations are known, if that is not the same.
    by_annotations: Option<&'static str>,
    /// What is so in the policy.
    policy: fn(&Policy) -> bool,
}

fn any(_: &Policy) -> bool {
    true
}

fn shape(name: &'static str, expected: &'static str, pod: Value) -> Shape {
    Shape { name, pod, expected, by_annotations: None, policy: any }
}

/// A pod as the injector leaves it in CNI mode. Since 1.27 the sidecar is a native one by itself where all
/// kubelets are new enough.
fn injected(version: u32) -> Value {
    let revision = format!("1-{version}");
    let status = json!({
        "initContainers": ["istio-validation"], "containers": ["istio-proxy"],
        "volumes": ["workload-socket", "istio-envoy", "istio-data", "istio-token"],
        "imagePullSecrets": null, "revision": revision,
    });
    let ports = if version >= 24 { "15020,15021,15090" } else { "15090,15021,15020" };
    let proxy = json!({
        "name": "istio-proxy", "image": format!("proxyv2:1.{version}.0"),
        "args": ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local", "--proxyLogLevel=warning"],
        "env": [
            { "name": "PILOT_CERT_PROVIDER", "value": "istiod" },
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "ISTIO_META_INTERCEPTION_MODE", "value": "REDIRECT" },
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "privileged": false,
            "readOnlyRootFilesystem": true, "runAsGroup": 1337, "runAsNonRoot": true, "runAsUser": 1337,
        },
    });
    let validation = json!({
        "name": "istio-validation", "image": format!("proxyv2:1.{version}.0"),
        "args": ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT",
            "--run-validation", "--skip-rule-apply"],
    });
    let mut pod = json!({
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "0a",
            "labels": { "app": "web", "security.istio.io/tlsMode": "istio", "istio.io/rev": revision },
            "annotations": {
                "sidecar.istio.io/status": status.to_string(),
                "sidecar.istio.io/interceptionMode": "REDIRECT",
                "traffic.sidecar.istio.io/includeInboundPorts": "*",
                "traffic.sidecar.istio.io/excludeInboundPorts": ports,
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "*",
            },
        },
        "spec": { "initContainers": [validation], "containers": [{ "name": "web", "image": "web" }, proxy] },
        "status": { "phase": "Pending" },
    });
    if version >= 27 {
        native(&mut pod);
    }
    pod
}

/// The sidecar becomes an init container that stays.
fn native(pod: &mut Value) {
    let containers = pod["spec"]["containers"].as_array_mut().unwrap();
    let Some(at) = containers.iter().position(|container| container["name"] == "istio-proxy") else { return };
    let mut proxy = containers.remove(at);
    proxy["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"].as_array_mut().unwrap().push(proxy);
    let status = json!({ "initContainers": ["istio-validation", "istio-proxy"], "containers": null });
    annotate(pod, "sidecar.istio.io/status", &status.to_string());
}

fn annotate(pod: &mut Value, name: &str, value: &str) {
    pod["metadata"]["annotations"][name] = json!(value);
}

/// The sidecar's container, wherever it is.
fn proxy(pod: &mut Value) -> &mut Value {
    let spec = pod["spec"].as_object_mut().unwrap();
    let lists = spec.iter_mut().filter(|(key, _)| key.ends_with("ontainers"));
    lists
        .flat_map(|(_, list)| list.as_array_mut().unwrap())
        .find(|container| container["name"] == "istio-proxy")
        .expect("a sidecar")
}

/// A pod with a change.
fn with(version: u32, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = injected(version);
    change(&mut pod);
    pod
}

/// That pod with one annotation more.
fn annotated(
    name: &'static str,
    expected: &'static str,
    version: u32,
    (annotation, value): (&str, &str),
) -> Shape {
    shape(name, expected, with(version, |pod| annotate(pod, annotation, value)))
}

fn set(pod: &mut Value, variable: &str, value: &str) {
    proxy(pod)["env"].as_array_mut().unwrap().push(json!({ "name": variable, "value": value }));
}

/// Shapes that are enrolled.
fn ours(version: u32) -> Vec<Shape> {
    vec![
        Shape {
            policy: |policy| policy.proxy == Proxy::default() && !policy.dns_capture,
            ..shape("as injected", "enrolled", injected(version))
        },
        shape("a native sidecar by annotation", "enrolled", with(version, native)),
        shape(
            "the sidecar first, as holdApplicationUntilProxyStarts has it",
            "enrolled",
            with(version, |pod| {
                pod["spec"]["containers"].as_array_mut().unwrap().reverse();
            }),
        ),
        shape(
            "without istio-validation",
            "enrolled",
            with(version, |pod| {
                let init = pod["spec"]["initContainers"].as_array_mut().unwrap();
                init.retain(|container| container["name"] != "istio-validation");
            }),
        ),
        Shape {
            policy: |policy| policy.interception_mode == InterceptionMode::Tproxy && policy.proxy.uid == 1337,
            ..shape(
                "TPROXY",
                "enrolled",
                with(version, |pod| {
                    annotate(pod, "sidecar.istio.io/interceptionMode", "TPROXY");
                    proxy(pod)["securityContext"]["runAsUser"] = json!(0);
                    proxy(pod)["securityContext"]["runAsGroup"] = json!(1337);
                }),
            )
        },
        shape(
            "of a job",
            "enrolled",
            with(version, |pod| {
                pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "batch/v1", "kind": "Job", "name": "web", "uid": "0b", "controller": true }]);
                pod["spec"]["restartPolicy"] = json!("Never");
            }),
        ),
        Shape {
            policy: |policy| {
                policy.exclude_outbound_ports.contains(&25)
                    && policy.exclude_inbound_ports.contains(&9090)
                    && policy.exclude_outbound_ip_ranges.len() == 1
            },
            ..shape(
                "with traffic annotations",
                "enrolled",
                with(version, |pod| {
                    annotate(pod, "traffic.sidecar.istio.io/excludeOutboundPorts", "25");
                    annotate(pod, "traffic.sidecar.istio.io/excludeInboundPorts", "9090,15020,15021,15090");
                    annotate(pod, "traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.96.0.1/32");
                }),
            )
        },
        shape(
            "label inject=true",
            "enrolled",
            with(version, |pod| {
                pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true");
            }),
        ),
    ]
}

/// Shapes of which the annotations alone do not tell all: what they lack has the node's defaults then.
fn told_by_the_spec(version: u32) -> Vec<Shape> {
    vec![
        Shape {
            policy: |policy| [1337, 5000].contains(&policy.proxy.uid) && policy.proxy.uid == policy.proxy.gid,
            ..shape(
                "a uid of its own",
                "enrolled",
                with(version, |pod| {
                    proxy(pod)["securityContext"]["runAsUser"] = json!(5000);
                    proxy(pod)["securityContext"]["runAsGroup"] = json!(5000);
                }),
            )
        },
        Shape {
            policy: |policy| policy.dns_capture,
            ..shape(
                "DNS capture",
                "enrolled",
                with(version, |pod| {
                    set(pod, "ISTIO_META_DNS_CAPTURE", "true");
                    annotate(
                        pod,
                        "proxy.istio.io/config",
                        r#"{"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true"}}"#,
                    );
                }),
            )
        },
        shape(
            "proxyless gRPC",
            "envoy_disabled",
            with(version, |pod| {
                set(pod, "DISABLE_ENVOY", "true");
                annotate(pod, "inject.istio.io/templates", "grpc-agent");
            }),
        ),
        shape(
            "a gateway",
            "not_a_sidecar",
            with(version, |pod| {
                annotate(pod, "inject.istio.io/templates", "gateway");
                pod["metadata"]["labels"]["istio"] = json!("ingressgateway");
                proxy(pod)["args"] = json!(["proxy", "router", "--domain", "x"]);
            }),
        ),
        shape(
            "a gateway of the Gateway API",
            "not_a_sidecar",
            with(version, |pod| {
                annotate(pod, "inject.istio.io/templates", "gateway");
                pod["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] = json!("web");
                pod["spec"]["initContainers"] = json!([]);
                pod["spec"]["containers"] = json!([{ "name": "istio-proxy", "args": ["proxy", "router"] }]);
            }),
        ),
    ]
}

/// Shapes that are left alone, and those that are refused.
fn not_ours(version: u32) -> Vec<Shape> {
    vec![
        Shape {
            // The spec shows it earlier than the annotations.
            by_annotations: Some("not_injected"),
            ..shape(
                "not injected",
                "no_proxy_container",
                with(version, |pod| {
                    pod["metadata"]["annotations"] = json!({});
                    pod["spec"]["initContainers"] = json!([]);
                    pod["spec"]["containers"] = json!([{ "name": "web", "image": "web" }]);
                }),
            )
        },
        Shape {
            ..shape(
                "with istio-init",
                "istio_init",
                with(version, |pod| {
                    pod["spec"]["initContainers"][0]["name"] = json!("istio-init");
                    let status = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#;
                    annotate(pod, "sidecar.istio.io/status", status);
                }),
            )
        },
        annotated(
            "interceptionMode NONE",
            "interception_none",
            version,
            ("sidecar.istio.io/interceptionMode", "NONE"),
        ),
        annotated("annotation inject=false", "inject_false", version, ("sidecar.istio.io/inject", "false")),
        Shape {
            by_annotations: Some("enrolled"),
            ..shape(
                "in the node's network",
                "host_network",
                with(version, |pod| {
                    pod["spec"]["hostNetwork"] = json!(true);
                }),
            )
        },
        shape(
            "in an excluded namespace",
            "excluded_namespace",
            with(version, |pod| {
                pod["metadata"]["namespace"] = json!("istio-system");
            }),
        ),
        annotated(
            "a port that is none",
            "excludeOutboundPorts",
            version,
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "http"),
        ),
        annotated(
            "of KubeVirt",
            "kubevirtInterfaces",
            version,
            ("traffic.sidecar.istio.io/kubevirtInterfaces", "k6t-eth0"),
        ),
    ]
}

/// What the API server says.
struct Known(PodDetails);

impl PodSource for Known {
    fn details(&self, _: &PodRef, _: Option<&Annotations>) -> Result<PodDetails, source::Error> {
        Ok(self.0.clone())
    }
}

/// The label, or the error's text, and whether the policy is as it should be.
fn decided(shape: &Shape, rules: &Rules, by_annotations: bool) -> (String, bool) {
    let pod: Pod = serde_json::from_value(shape.pod.clone()).expect("a pod");
    let (reference, details) = (pod.reference(), pod.details());
    let decided = if by_annotations {
        let annotations: Annotations =
            pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
        enrol(&reference, Some(&annotations), rules, &AskRuntime)
    } else {
        enrol(&reference, None, rules, &Known(details))
    };
    match decided {
        Ok(Enrolment::NotEnrolled(reason)) => (reason.label().to_owned(), true),
        Ok(Enrolment::Enrolled { policy, .. }) => ("enrolled".to_owned(), (shape.policy)(&policy)),
        Err(error) => (error.to_string(), true),
    }
}

#[test]
fn exactly_the_right_pods_are_enrolled_with_the_right_policy() {
    let rules = crate::rules::of_entry("{}").unwrap();
    let (mut shapes, mut faults) = (0, Vec::new());
    for version in VERSIONS {
        for shape in ours(version).into_iter().chain(told_by_the_spec(version)).chain(not_ours(version)) {
            shapes += 1;
            for by_annotations in [false, true] {
                let expected = shape.by_annotations.filter(|_| by_annotations).unwrap_or(shape.expected);
                let (found, policy) = decided(&shape, &rules, by_annotations);
                let as_expected = found == expected || found.contains(' ') && found.contains(expected);
                if !as_expected || !policy {
                    faults.push(format!(
                        "1.{version}, {} (annotations alone: {by_annotations}): {found}, expected {expected}; \
                         policy as it should be: {policy}",
                        shape.name
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    println!("{shapes} pods, each looked at in two ways");
}
