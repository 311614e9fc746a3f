//! Is this pod ours, and with which policy?
//!
//! The questions are asked in one order and the first answer counts. The cheap ones come first, so that a pod
//! without a sidecar starts also where the agent or the API server is away. Each way of saying no is a
//! [`Reason`] with a label that logs and metrics share. Today's conditions are those of Istio's own plugin;
//! those of 2019 that it has since dropped (more than one container) are kept.

pub mod ask_agent;
pub mod ask_runtime;
pub mod protocol;
pub mod source;

use thiserror::Error;

use crate::enrol::source::{
    Container, ContainerKind, DISABLE_ENVOY, DNS_CAPTURE, PodDetails, PodSource, STATUS,
};
use crate::ids::PodRef;
use crate::policy::Policy;
use crate::policy::annotations::{self, Annotations, Capture, Defaults};
use crate::policy::grammar::boolean;
use crate::policy::owner_groups::{self, Variables};

/// Label (which counts first) or annotation with which a pod opts out.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// The init container that programs iptables itself.
const ISTIO_INIT: &str = "istio-init";

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a pod is not enrolled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// All reasons, in the order in which they are looked at.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// The stable name in logs and metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// The runtime named no pod: a container outside Kubernetes.
    NotKubernetes = "not_kubernetes",
    /// The namespace is in `excludeNamespaces`.
    ExcludedNamespace = "excluded_namespace",
    /// No sidecar was injected: `sidecar.istio.io/status` is absent.
    NotInjected = "not_injected",
    /// The pod shares the node's network.
    HostNetwork = "host_network",
    /// An `istio-init` container will redirect the pod itself.
    IstioInit = "istio_init",
    /// `DISABLE_ENVOY` is true: proxyless gRPC.
    EnvoyDisabled = "envoy_disabled",
    /// No container has the proxy's name.
    NoProxyContainer = "no_proxy_container",
    /// The proxy is no sidecar but, for example, a gateway (`proxy router`).
    NotASidecar = "not_a_sidecar",
    /// The proxy is alone in its pod.
    SingleContainer = "single_container",
    /// The label, or else the annotation, `sidecar.istio.io/inject` is false.
    InjectFalse = "inject_false",
    /// `interceptionMode` is NONE.
    InterceptionNone = "interception_none",
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// Why no decision can be taken.
#[derive(Debug, Error)]
pub enum Error {
    /// The pod's details are not available.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The pod is ours, and its annotations cannot be used.
    #[error("pod {pod}: {source}")]
    Annotations {
        /// The pod.
        pod: Box<PodRef>,
        /// Which, and why.
        source: annotations::Error,
    },
    /// The pod is ours, and the node's owner groups cannot be used.
    #[error(transparent)]
    OwnerGroups(#[from] owner_groups::Error),
}

/// What the node's configuration says about enrolment.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The name of the proxy's container.
    pub proxy_container: String,
    /// Values for what the pod does not say.
    pub defaults: Defaults,
    /// Whose outbound traffic is captured, by group; the same for every pod of the node.
    pub owner_groups: Variables,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// The pod is left alone.
    NotEnrolled(Reason),
    /// The pod is captured by this policy.
    Enrolled {
        /// The pod, with its uid where runtime or source know it.
        pod: PodRef,
        /// What is captured.
        policy: Box<Policy>,
    },
}

/// Decides about `pod`; `handed_over` are the annotations that the runtime passed to the plugin, if it did.
///
/// # Errors
/// The details are not available, or the pod is ours and an annotation is invalid.
pub fn enrol(
    pod: &PodRef,
    handed_over: Option<&Annotations>,
    rules: &Rules,
    source: &dyn PodSource,
) -> Result<Enrolment, Error> {
    if rules.exclude_namespaces.contains(&pod.namespace) {
        return Ok(Enrolment::NotEnrolled(Reason::ExcludedNamespace));
    }
    if handed_over.is_some_and(|annotations| !annotations.contains_key(STATUS)) {
        return Ok(Enrolment::NotEnrolled(Reason::NotInjected));
    }
    let details = source.details(pod, handed_over)?;
    let proxy = match sidecar(&details, rules) {
        Ok(proxy) => proxy,
        Err(reason) => return Ok(Enrolment::NotEnrolled(reason)),
    };
    let defaults = defaults_of(proxy, &rules.defaults);
    let capture = annotations::capture(&details.annotations, &defaults)
        .map_err(|source| Error::Annotations { pod: Box::new(pod.clone()), source })?;
    Ok(match capture {
        Capture::Off => Enrolment::NotEnrolled(Reason::InterceptionNone),
        Capture::On(mut policy) => {
            policy.owner_groups = rules.owner_groups.parse()?;
            let uid = pod.uid.clone().or(details.uid);
            Enrolment::Enrolled { pod: PodRef { uid, ..pod.clone() }, policy }
        }
    })
}

/// The container of the sidecar that a pod's traffic goes through, or why there is none.
fn sidecar<'a>(pod: &'a PodDetails, rules: &Rules) -> Result<&'a Container, Reason> {
    if pod.host_network {
        return Err(Reason::HostNetwork);
    }
    if pod.containers.iter().any(|container| container.name == ISTIO_INIT) {
        return Err(Reason::IstioInit);
    }
    let proxy = pod.containers.iter().find(|container| container.name == rules.proxy_container);
    let proxy = proxy.ok_or(Reason::NoProxyContainer)?;
    if proxy.env.get(DISABLE_ENVOY).is_some_and(|value| boolean(value) == Ok(true)) {
        return Err(Reason::EnvoyDisabled);
    }
    if proxy_type(&proxy.args).is_some_and(|kind| kind != "sidecar") {
        return Err(Reason::NotASidecar);
    }
    let stays = |container: &&Container| container.kind != ContainerKind::Init;
    if !pod.partial && pod.containers.iter().filter(stays).count() < 2 {
        return Err(Reason::SingleContainer);
    }
    let inject = pod.labels.get(INJECT).or_else(|| pod.annotations.get(INJECT));
    if inject.is_some_and(|value| boolean(value) == Ok(false)) {
        return Err(Reason::InjectFalse);
    }
    if !pod.annotations.contains_key(STATUS) {
        return Err(Reason::NotInjected);
    }
    Ok(proxy)
}

/// `proxy <type> --flags`: the type, where one is given.
fn proxy_type(args: &[String]) -> Option<&str> {
    match args {
        [command, kind, ..] if command == "proxy" && !kind.is_empty() && !kind.starts_with('-') => Some(kind),
        _ => None,
    }
}

/// The node's defaults with what the proxy's container says. An id of 0 is what the injector writes for
/// TPROXY and means the default, as in Istio.
fn defaults_of(proxy: &Container, node: &Defaults) -> Defaults {
    let mut defaults = node.clone();
    if let Some(uid) = proxy.run_as_user.filter(|uid| *uid != 0) {
        defaults.proxy.uid = uid;
    }
    if let Some(gid) = proxy.run_as_group.filter(|gid| *gid != 0) {
        defaults.proxy.gid = gid;
    }
    if let Some(value) = proxy.env.get(DNS_CAPTURE) {
        defaults.dns_capture = boolean(value).unwrap_or_else(|_| {
            tracing::warn!(variable = DNS_CAPTURE, value, "is neither true nor false and counts as false");
            false
        });
    }
    defaults
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::enrol::ask_runtime::AskRuntime;

    /// A source that counts how often it is asked.
    struct Canned(PodDetails, Cell<u32>);

    impl PodSource for Canned {
        fn details(&self, _: &PodRef, _: Option<&Annotations>) -> Result<PodDetails, source::Error> {
            self.1.set(self.1.get() + 1);
            Ok(self.0.clone())
        }
    }

    fn map<const N: usize>(pairs: [(&str, &str); N]) -> std::collections::BTreeMap<String, String> {
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn container(name: &str, kind: ContainerKind) -> Container {
        Container { name: name.to_owned(), kind, ..Container::default() }
    }

    fn pod() -> PodRef {
        PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: Some("11".to_owned()) }
    }

    /// A pod that every condition lets through.
    fn injected() -> PodDetails {
        PodDetails {
            uid: Some("22".to_owned()),
            annotations: map([(STATUS, "{}")]),
            containers: vec![
                container("istio-validation", ContainerKind::Init),
                container("istio-proxy", ContainerKind::Regular),
                container("web", ContainerKind::Regular),
            ],
            ..PodDetails::default()
        }
    }

    fn rules() -> Rules {
        Rules {
            exclude_namespaces: vec!["istio-system".to_owned(), "kube-system".to_owned()],
            proxy_container: "istio-proxy".to_owned(),
            defaults: Defaults::default(),
            owner_groups: Variables::default(),
        }
    }

    fn enrol_on(details: PodDetails) -> Enrolment {
        enrol(&pod(), None, &rules(), &Canned(details, Cell::new(0))).unwrap()
    }

    fn policy_of(details: PodDetails) -> Policy {
        match enrol_on(details) {
            Enrolment::Enrolled { policy, .. } => *policy,
            Enrolment::NotEnrolled(reason) => panic!("not enrolled: {reason}"),
        }
    }

    #[test]
    fn an_injected_pod_is_enrolled_with_the_default_policy() {
        let Enrolment::Enrolled { pod: enrolled, policy } = enrol_on(injected()) else {
            panic!("not enrolled")
        };
        assert_eq!((enrolled, *policy), (pod(), Policy::default()));
    }

    #[test]
    fn each_condition_stops_the_pod_with_its_own_reason() {
        type Change = fn(&mut PodDetails);
        let table: &[(Reason, Change)] = &[
            (Reason::HostNetwork, |pod| pod.host_network = true),
            (Reason::IstioInit, |pod| pod.containers.push(container("istio-init", ContainerKind::Init))),
            (Reason::IstioInit, |pod| pod.containers.push(container("istio-init", ContainerKind::Regular))),
            (Reason::EnvoyDisabled, |pod| pod.containers[1].env = map([(DISABLE_ENVOY, "True")])),
            (Reason::NoProxyContainer, |pod| pod.containers[1].name = "envoy".to_owned()),
            (Reason::NotASidecar, |pod| pod.containers[1].args = vec!["proxy".into(), "router".into()]),
            (Reason::SingleContainer, |pod| pod.containers.truncate(2)),
            (Reason::InjectFalse, |pod| pod.labels = map([(INJECT, "false")])),
            (Reason::InjectFalse, |pod| {
                pod.annotations.insert(INJECT.to_owned(), "F".to_owned());
            }),
            (Reason::InjectFalse, |pod| {
                pod.annotations.insert(INJECT.to_owned(), "true".to_owned());
                pod.labels = map([(INJECT, "0")]);
            }),
            (Reason::NotInjected, |pod| pod.annotations.clear()),
            (Reason::InterceptionNone, |pod| {
                pod.annotations.insert(annotations::INTERCEPTION_MODE.to_owned(), "NONE".to_owned());
            }),
        ];
        for (reason, change) in table {
            let mut details = injected();
            change(&mut details);
            assert_eq!(enrol_on(details), Enrolment::NotEnrolled(*reason), "{reason}");
        }
    }

    #[test]
    fn what_does_not_say_no_lets_the_pod_through() {
        type Change = fn(&mut PodDetails);
        let table: &[Change] = &[
            |pod| pod.containers[1].env = map([(DISABLE_ENVOY, "no")]),
            |pod| pod.containers[2].env = map([(DISABLE_ENVOY, "true")]),
            |pod| pod.containers[1].args = vec!["proxy".into(), "sidecar".into(), "--domain".into()],
            |pod| pod.containers[1].args = vec!["proxy".into(), "--log_as_json".into()],
            |pod| pod.containers[1].args = vec!["proxy".into(), String::new()],
            |pod| pod.containers[1].args = vec!["istio-iptables".into(), "router".into()],
            |pod| pod.labels = map([(INJECT, "true")]),
            |pod| pod.labels = map([(INJECT, "perhaps")]),
            |pod| pod.labels = map([(INJECT, "")]),
            |pod| {
                pod.annotations.insert(INJECT.to_owned(), "false".to_owned());
                pod.labels = map([(INJECT, "true")]);
            },
            // A native sidecar counts as a container that stays.
            |pod| {
                pod.containers[1].kind = ContainerKind::Sidecar;
            },
            // What the source cannot see is not held against the pod.
            |pod| {
                pod.containers.truncate(2);
                pod.partial = true;
            },
        ];
        for (index, change) in table.iter().enumerate() {
            let mut details = injected();
            change(&mut details);
            assert!(matches!(enrol_on(details), Enrolment::Enrolled { .. }), "row {index}");
        }
    }

    #[test]
    fn pods_outside_the_mesh_never_cost_a_question() {
        let source = Canned(injected(), Cell::new(0));
        let excluded = PodRef { namespace: "kube-system".to_owned(), ..pod() };
        assert_eq!(
            enrol(&excluded, None, &rules(), &source).unwrap(),
            Enrolment::NotEnrolled(Reason::ExcludedNamespace)
        );
        let plain = map([("prometheus.io/scrape", "true")]);
        assert_eq!(
            enrol(&pod(), Some(&plain), &rules(), &source).unwrap(),
            Enrolment::NotEnrolled(Reason::NotInjected)
        );
        assert_eq!(source.1.get(), 0, "the source was asked");
        let with_sidecar = map([(STATUS, "{}")]);
        assert!(matches!(
            enrol(&pod(), Some(&with_sidecar), &rules(), &source).unwrap(),
            Enrolment::Enrolled { .. }
        ));
        assert_eq!(source.1.get(), 1);
    }

    #[test]
    fn the_proxy_says_who_it_is_and_whether_it_answers_dns() {
        let mut details = injected();
        details.containers[1].run_as_user = Some(2000);
        details.containers[1].run_as_group = Some(0);
        details.containers[1].env = map([(DNS_CAPTURE, "true")]);
        let policy = policy_of(details);
        assert_eq!((policy.proxy.uid, policy.proxy.gid, policy.dns_capture), (2000, 1337, true));

        let mut details = injected();
        details.containers[1].env = map([(DNS_CAPTURE, "yes please")]);
        let mut rules = rules();
        rules.defaults.dns_capture = true;
        let decided = enrol(&pod(), None, &rules, &Canned(details, Cell::new(0))).unwrap();
        let Enrolment::Enrolled { policy, .. } = decided else { panic!("not enrolled") };
        assert!(!policy.dns_capture, "an unreadable value counts as false, not as the node's default");
    }

    #[test]
    fn an_invalid_annotation_of_an_enrolled_pod_is_an_error_that_names_pod_annotation_and_value() {
        let mut details = injected();
        details.annotations.insert(annotations::INCLUDE_OUTBOUND_PORTS.to_owned(), "http".to_owned());
        let error = enrol(&pod(), None, &rules(), &Canned(details, Cell::new(0))).unwrap_err().to_string();
        for part in ["shop/web-0", annotations::INCLUDE_OUTBOUND_PORTS, "http"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_runtimes_annotations_alone_are_enough_for_an_injected_pod() {
        let classic = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
        let native = r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#;
        let by_init = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#;
        let enrol_with = |pairs: &[(&str, &str)]| {
            let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            enrol(&pod(), Some(&annotations), &rules(), &AskRuntime).unwrap()
        };
        assert!(matches!(enrol_with(&[(STATUS, classic)]), Enrolment::Enrolled { .. }));
        assert!(matches!(enrol_with(&[(STATUS, native)]), Enrolment::Enrolled { .. }));
        assert_eq!(enrol_with(&[(STATUS, by_init)]), Enrolment::NotEnrolled(Reason::IstioInit));
        assert_eq!(enrol_with(&[(STATUS, "{}")]), Enrolment::NotEnrolled(Reason::NoProxyContainer));
        assert_eq!(
            enrol_with(&[(STATUS, classic), ("inject.istio.io/templates", "gateway")]),
            Enrolment::NotEnrolled(Reason::NotASidecar)
        );
        assert_eq!(
            enrol_with(&[(STATUS, classic), ("inject.istio.io/templates", "grpc-agent")]),
            Enrolment::NotEnrolled(Reason::EnvoyDisabled)
        );
    }

    #[test]
    fn labels_are_unique_and_fit_a_metric() {
        let labels: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(
            labels.iter().all(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        );
    }
}
