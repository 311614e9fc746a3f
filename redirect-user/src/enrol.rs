//! Is this pod ours, and with which policy?
//!
//! The questions are asked in one order and the first answer counts. The cheap ones come first, so that a pod
//! without a sidecar starts also where the agent or the API server is away. Each way of saying no is a
//! [`Reason`] with a label that logs and metrics share. Today's conditions are those of Istio's own plugin;
//! those of 2019 that it has since dropped (more than one container) are kept.

pub mod ask_agent;
pub mod ask_runtime;
pub mod protocol;
pub mod proxy_config;
mod reason;
pub mod runtime_class;
pub mod source;

use thiserror::Error;

pub use crate::enrol::reason::Reason;
use crate::enrol::runtime_class::RuntimeClasses;
use crate::enrol::source::{
    Container, ContainerKind, DISABLE_ENVOY, DNS_CAPTURE, PodDetails, PodSource, STATUS,
};
use crate::ids::PodRef;
use crate::policy::Policy;
use crate::policy::annotations::{self, Annotations, Capture};
use crate::policy::grammar::boolean;
use crate::policy::owner_groups::{self, Variables};

/// Label (which counts first) or annotation with which a pod opts out.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// The init container that programs iptables itself.
const ISTIO_INIT: &str = "istio-init";

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
    /// The pod has a sidecar and opts out of capture, which the node's configuration forbids.
    #[error(
        "pod {pod} opts out of capture by {by} ({reason}), and this node's configuration forbids that \
         (\"forbidOptOut\": true); take it away, or run the pod in a namespace of excludeNamespaces"
    )]
    OptOut {
        /// The pod.
        pod: Box<PodRef>,
        /// Why it would be left alone.
        reason: Reason,
        /// How it says so.
        by: &'static str,
    },
    /// The pod's processes do not use this kernel's sockets.
    #[error(
        "pod {pod} has the RuntimeClass {class:?}, which refuseRuntimeClasses names: its sockets are not this \
         kernel's, so nothing that it sends would be captured; run it without a sidecar, or as another class"
    )]
    RuntimeClass {
        /// The pod.
        pod: Box<PodRef>,
        /// Its class.
        class: String,
    },
}

/// What the node's configuration says about enrolment.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The name of the proxy's container.
    pub proxy_container: String,
    /// What a pod without any annotation gets.
    pub defaults: Policy,
    /// A pod with a sidecar that opts out of capture does not start.
    pub forbid_opt_out: bool,
    /// Classes of pods that cannot be captured.
    pub refuse_runtime_classes: RuntimeClasses,
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

/// Why a pod is left alone, as far as the runtime's own words tell it; `None` where they do not. Nothing else
/// of the configuration is needed for such a pod, so a mistake in it stops pods of the mesh only.
#[must_use]
pub fn at_a_glance(
    pod: &PodRef,
    handed_over: Option<&Annotations>,
    exclude_namespaces: &[String],
) -> Option<Reason> {
    if exclude_namespaces.contains(&pod.namespace) {
        return Some(Reason::ExcludedNamespace);
    }
    let not_injected = handed_over.is_some_and(|annotations| !annotations.contains_key(STATUS));
    not_injected.then_some(Reason::NotInjected)
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
    if let Some(reason) = at_a_glance(pod, handed_over, &rules.exclude_namespaces) {
        return Ok(Enrolment::NotEnrolled(reason));
    }
    let details = source.details(pod, handed_over)?;
    let proxy = match sidecar(&details, rules) {
        Ok(proxy) => proxy,
        Err(reason) => return left_alone(pod, rules, reason),
    };
    let defaults = defaults_of(proxy, &rules.defaults);
    let capture = annotations::capture(&details.annotations, &defaults)
        .map_err(|source| Error::Annotations { pod: Box::new(pod.clone()), source })?;
    let Capture::On(mut policy) = capture else { return left_alone(pod, rules, Reason::InterceptionNone) };
    if let Some(class) = details.runtime_class.filter(|class| rules.refuse_runtime_classes.contain(class)) {
        return Err(Error::RuntimeClass { pod: Box::new(pod.clone()), class });
    }
    policy.owner_groups = rules.owner_groups.parse()?;
    let uid = pod.uid.clone().or(details.uid);
    Ok(Enrolment::Enrolled { pod: PodRef { uid, ..pod.clone() }, policy })
}

/// A pod that is not captured: fine, unless it is the pod itself that says so and the node forbids that.
fn left_alone(pod: &PodRef, rules: &Rules, reason: Reason) -> Result<Enrolment, Error> {
    match reason.opts_out_by() {
        Some(by) if rules.forbid_opt_out => Err(Error::OptOut { pod: Box::new(pod.clone()), reason, by }),
        _ => Ok(Enrolment::NotEnrolled(reason)),
    }
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
fn defaults_of(proxy: &Container, node: &Policy) -> Policy {
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
    use crate::policy::parameters::INCLUDE_OUTBOUND_PORTS;

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
            defaults: Policy::default(),
            forbid_opt_out: false,
            refuse_runtime_classes: RuntimeClasses::default(),
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
    fn a_pod_that_opts_out_does_not_start_where_the_node_forbids_it() {
        let strict = Rules { forbid_opt_out: true, ..rules() };
        let on = |details| enrol(&pod(), None, &strict, &Canned(details, Cell::new(0)));
        let mut none = injected();
        none.annotations.insert(annotations::INTERCEPTION_MODE.to_owned(), "NONE".to_owned());
        let mut gateway = injected();
        gateway.containers[1].args = vec!["proxy".into(), "router".into()];
        let mut label = injected();
        label.labels = map([(INJECT, "false")]);
        let mut init = injected();
        init.containers.push(container("istio-init", ContainerKind::Init));
        for (details, by) in
            [(none, "interceptionMode"), (gateway, "gateway"), (label, INJECT), (init, "istio-init")]
        {
            let text = on(details).unwrap_err().to_string();
            assert!(
                text.contains("shop/web-0") && text.contains(by) && text.contains("forbidOptOut"),
                "{text}"
            );
        }
        // What is not the pod's own doing stays as it is.
        let mut plain = injected();
        plain.annotations.clear();
        assert_eq!(on(plain).unwrap(), Enrolment::NotEnrolled(Reason::NotInjected));
        let mut host = injected();
        host.host_network = true;
        assert_eq!(on(host).unwrap(), Enrolment::NotEnrolled(Reason::HostNetwork));
    }

    #[test]
    fn a_class_whose_sockets_are_not_the_kernels_is_refused() {
        let mut kata = injected();
        kata.runtime_class = Some("kata-qemu".to_owned());
        let error = enrol(&pod(), None, &rules(), &Canned(kata.clone(), Cell::new(0))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("shop/web-0") && text.contains("kata-qemu"), "{text}");
        // Nothing is captured of a pod without a sidecar.
        kata.annotations.clear();
        assert_eq!(enrol_on(kata), Enrolment::NotEnrolled(Reason::NotInjected));
        let mut plain = injected();
        plain.runtime_class = Some("runc".to_owned());
        assert!(matches!(enrol_on(plain), Enrolment::Enrolled { .. }));
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
        details.annotations.insert(INCLUDE_OUTBOUND_PORTS.annotation.to_owned(), "http".to_owned());
        let error = enrol(&pod(), None, &rules(), &Canned(details, Cell::new(0))).unwrap_err().to_string();
        for part in ["shop/web-0", INCLUDE_OUTBOUND_PORTS.annotation, "http"] {
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
