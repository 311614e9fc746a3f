//! What a pod's author writes: annotations, on the whole way from the runtime's words to a policy.

use std::collections::BTreeMap;

use redirect_user::enrol::ask_runtime::AskRuntime;
use redirect_user::enrol::proxy_config::{PROXY_CONFIG, ProxyConfig};
use redirect_user::enrol::source::STATUS;
use redirect_user::enrol::{Enrolment, INJECT, Rules, enrol};
use redirect_user::ids::PodRef;
use redirect_user::policy::Policy;
use redirect_user::policy::annotations::{
    Annotations, Capture, KUBEVIRT_INTERFACES, REROUTE_VIRTUAL_INTERFACES, STATUS_PORT, capture,
};
use redirect_user::policy::parameters::PARAMETERS;
use redirect_user::printable::printable;

use crate::outcome::{Outcome, assert_is_one_line};

/// Annotations that are no row of the table of parameters.
const OTHERS: [&str; 7] = [
    KUBEVIRT_INTERFACES,
    REROUTE_VIRTUAL_INTERFACES,
    STATUS_PORT,
    STATUS,
    PROXY_CONFIG,
    INJECT,
    "inject.istio.io/templates",
];

/// One annotation of an injected pod, by the first byte; the rest is its value.
pub(crate) fn annotations(data: &[u8]) -> Outcome {
    let Some((first, value)) = data.split_first() else { return Outcome::Strange };
    let Ok(value) = std::str::from_utf8(value) else { return Outcome::Strange };
    let names: Vec<&str> = PARAMETERS.iter().map(|one| one.annotation).chain(OTHERS).collect();
    let name = names[usize::from(*first) % names.len()];
    let mut given = BTreeMap::from([(STATUS.to_owned(), r#"{"containers":["istio-proxy"]}"#.to_owned())]);
    given.insert(name.to_owned(), value.to_owned());
    let pod = PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: None };
    match enrol(&pod, Some(&given), &rules(), &AskRuntime) {
        Ok(Enrolment::Enrolled { policy, .. }) => captured(&given, &policy, value.len()),
        Ok(Enrolment::NotEnrolled(reason)) => assert!(!reason.label().is_empty()),
        Err(error) => {
            let text = printable(&error.to_string());
            assert_is_one_line(&text, 6_000);
            assert!(text.contains(name), "{name}={value:?} is not named: {text}");
            assert!(text.contains("shop/web-0"), "the pod is not named: {text}");
            return Outcome::Refused;
        }
    }
    Outcome::Read
}

/// A policy can be written and read again, is no longer than what it was made of, and reading the annotations
/// once more changes nothing.
fn captured(given: &Annotations, policy: &Policy, len: usize) {
    let text = serde_json::to_string(policy).expect("a policy can be written");
    let again: Policy = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(again, *policy);
    assert!(text.len() <= 1_000 + 10 * len, "{} bytes of record for {len} of annotation", text.len());
    assert_eq!(capture(given, policy), Ok(Capture::On(Box::new(policy.clone()))));
}

/// What a node without any setting of its own goes by.
fn rules() -> Rules {
    Rules {
        exclude_namespaces: Vec::new(),
        proxy_container: "istio-proxy".to_owned(),
        defaults: Policy::default(),
        forbid_opt_out: false,
        refuse_runtime_classes: Default::default(),
        owner_groups: Default::default(),
    }
}

/// `proxy.istio.io/config`: YAML, or JSON, which is YAML as well. What was read of it and is written as JSON
/// reads the same.
pub(crate) fn proxy_config(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Strange };
    match ProxyConfig::parse(text) {
        Ok(config) => {
            assert!(config.proxy_metadata.iter().all(|(name, value)| name.len() + value.len() <= text.len()));
            let port = config.status_port.map_or_else(|| "null".to_owned(), |port| port.to_string());
            let metadata = serde_json::to_string(&config.proxy_metadata).expect("text can be written");
            // A key with its value on one line has at most 1,024 letters in YAML (1.2.2, section 7.4). JSON
            // may take six to write one.
            if config.proxy_metadata.keys().any(|name| name.len() > 1_000 / 6) {
                return Outcome::Read;
            }
            let json = format!(r#"{{"proxyMetadata":{metadata},"statusPort":{port}}}"#);
            assert_eq!(ProxyConfig::parse(&json), Ok(config), "{json}");
            Outcome::Read
        }
        Err(problem) => {
            assert_is_one_line(&printable(&problem), 4_000);
            Outcome::Refused
        }
    }
}
