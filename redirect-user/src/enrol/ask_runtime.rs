//! The source that asks no other process: everything from the annotations that the runtime handed over.
//!
//! The injector writes into `sidecar.istio.io/status` which containers it put into the pod. The application's
//! own containers, labels and environment stay unknown, so the details are partial: what cannot be seen is
//! taken to be as in any injected pod. A gateway or a proxyless pod, which the container's arguments or
//! environment would give away, is known by the injection template that it names.

use serde::Deserialize;

use super::source::{
    Container, ContainerKind, DISABLE_ENVOY, Error, PodDetails, PodSource, STATUS, VARIABLES,
};
use crate::enrol::proxy_config::{PROXY_CONFIG, ProxyConfig};
use crate::ids::PodRef;
use crate::policy::annotations::{Annotations, STATUS_PORT};
use crate::policy::grammar::shorten;

/// Which templates the injector is to use; absent means the sidecar.
const TEMPLATES: &str = "inject.istio.io/templates";
/// The name under which the injector adds the proxy.
const PROXY: &str = "istio-proxy";

/// The source.
#[derive(Clone, Copy, Debug)]
pub struct AskRuntime;

/// What the injector writes into `sidecar.istio.io/status`, as far as it matters here.
struct Status {
    init_containers: Vec<String>,
    containers: Vec<String>,
}

impl Status {
    fn parse(text: &str) -> Result<Status, serde_json::Error> {
        // Read as a map first: serde takes an array for a struct, too.
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        let mut names = |key| {
            let list = object.remove(key).unwrap_or_default();
            Option::<Vec<String>>::deserialize(list).map(Option::unwrap_or_default)
        };
        Ok(Status { init_containers: names("initContainers")?, containers: names("containers")? })
    }
}

impl PodSource for AskRuntime {
    fn details(&self, pod: &PodRef, handed_over: Option<&Annotations>) -> Result<PodDetails, Error> {
        let annotations = handed_over.ok_or_else(|| Error::NotHandedOver { pod: Box::new(pod.clone()) })?;
        let mut containers = injected(pod, annotations)?;
        let config = proxy_config(pod, annotations)?;
        for proxy in containers.iter_mut().filter(|container| container.name == PROXY) {
            apply_template(proxy, annotations.get(TEMPLATES).map_or("", String::as_str));
            let decides = |(name, _): &(&String, &String)| VARIABLES.contains(&name.as_str());
            let said = config.proxy_metadata.iter().filter(decides);
            proxy.env.extend(said.map(|(name, value)| (name.clone(), value.clone())));
        }
        let mut annotations = annotations.clone();
        if let Some(port) = config.status_port {
            annotations.entry(STATUS_PORT.to_owned()).or_insert_with(|| port.to_string());
        }
        Ok(PodDetails {
            uid: pod.uid.clone(),
            annotations,
            containers,
            partial: true,
            ..PodDetails::default()
        })
    }
}

/// What the pod's owner says about the proxy. The annotation decides something only in a pod that has one.
fn proxy_config(pod: &PodRef, annotations: &Annotations) -> Result<ProxyConfig, Error> {
    let Some(text) = annotations.get(PROXY_CONFIG) else { return Ok(ProxyConfig::default()) };
    ProxyConfig::parse(text).map_err(|problem| Error::ProxyConfig {
        pod: Box::new(pod.clone()),
        value: shorten(text),
        problem,
    })
}

fn injected(pod: &PodRef, annotations: &Annotations) -> Result<Vec<Container>, Error> {
    let Some(text) = annotations.get(STATUS) else { return Ok(Vec::new()) };
    let status = Status::parse(text).map_err(|source| Error::Status {
        pod: Box::new(pod.clone()),
        value: shorten(text),
        source,
    })?;
    let named = |kind: fn(&str) -> ContainerKind| {
        move |name: String| Container { kind: kind(&name), name, ..Container::default() }
    };
    // The only injected init container that stays is the proxy itself.
    let init = named(|name| if name == PROXY { ContainerKind::Sidecar } else { ContainerKind::Init });
    let regular = named(|_| ContainerKind::Regular);
    let containers = status.containers.into_iter().map(regular);
    Ok(status.init_containers.into_iter().map(init).chain(containers).collect())
}

/// Gives the proxy what the named template would have given it.
fn apply_template(proxy: &mut Container, templates: &str) {
    for template in templates.split(',').map(str::trim) {
        match template {
            "gateway" => proxy.args = vec!["proxy".to_owned(), "router".to_owned()],
            "grpc-agent" | "grpc-simple" => {
                proxy.env.insert(DISABLE_ENVOY.to_owned(), "true".to_owned());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(pairs: &[(&str, &str)]) -> Result<PodDetails, Error> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let pod = PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: None };
        AskRuntime.details(&pod, Some(&annotations))
    }

    fn kinds(details: &PodDetails) -> Vec<(&str, ContainerKind)> {
        details.containers.iter().map(|container| (container.name.as_str(), container.kind)).collect()
    }

    #[test]
    fn the_status_annotation_lists_the_injected_containers() {
        let classic =
            r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"volumes":["x"]}"#;
        assert_eq!(
            kinds(&details(&[(STATUS, classic)]).unwrap()),
            [("istio-validation", ContainerKind::Init), ("istio-proxy", ContainerKind::Regular)]
        );
        let native =
            r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null,"revision":"default"}"#;
        assert_eq!(
            kinds(&details(&[(STATUS, native)]).unwrap()),
            [("istio-validation", ContainerKind::Init), ("istio-proxy", ContainerKind::Sidecar)]
        );
    }

    #[test]
    fn a_status_that_is_not_the_injectors_is_an_error_that_shows_it() {
        for bad in ["", "injected", "[]", r#"{"containers":"istio-proxy"}"#] {
            let text = details(&[(STATUS, bad)]).unwrap_err().to_string();
            assert!(
                text.contains(STATUS) && text.contains(&format!("{bad:?}")) && text.contains("shop/web-0"),
                "{text}"
            );
        }
    }

    #[test]
    fn gateways_and_proxyless_pods_are_known_by_their_template() {
        let status = (STATUS, r#"{"containers":["istio-proxy"]}"#);
        let gateway = details(&[status, (TEMPLATES, "gateway")]).unwrap();
        assert_eq!(gateway.containers[0].args, ["proxy", "router"]);
        let proxyless = details(&[status, (TEMPLATES, "sidecar, grpc-agent")]).unwrap();
        assert_eq!(proxyless.containers[0].env[DISABLE_ENVOY], "true");
        let sidecar = details(&[status, (TEMPLATES, "sidecar,custom")]).unwrap();
        assert!(sidecar.containers[0].args.is_empty() && sidecar.containers[0].env.is_empty());
    }

    #[test]
    fn the_proxy_config_says_what_the_containers_environment_would() {
        let status = (STATUS, r#"{"containers":["istio-proxy"]}"#);
        let said = |text| details(&[status, (PROXY_CONFIG, text)]).unwrap();
        let dns = said("proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n  OTHER: x\nstatusPort: 18000\n");
        assert_eq!(dns.containers[0].env, [("ISTIO_META_DNS_CAPTURE".to_owned(), "true".to_owned())].into());
        assert_eq!(dns.annotations[STATUS_PORT], "18000");
        let proxyless = said(r#"{"proxyMetadata":{"DISABLE_ENVOY":"true"}}"#);
        assert_eq!(proxyless.containers[0].env[DISABLE_ENVOY], "true");
        let both = details(&[status, (PROXY_CONFIG, "statusPort: 18000"), (STATUS_PORT, "19000")]).unwrap();
        assert_eq!(both.annotations[STATUS_PORT], "19000", "the annotation of its own comes first");
        let text = details(&[status, (PROXY_CONFIG, "[")]).unwrap_err().to_string();
        assert!(text.contains(PROXY_CONFIG) && text.contains("shop/web-0"), "{text}");
    }

    #[test]
    fn nothing_handed_over_is_an_error_that_says_what_to_do() {
        let pod = PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: None };
        let text = AskRuntime.details(&pod, None).unwrap_err().to_string();
        assert!(text.contains("io.kubernetes.cri.pod-annotations") && text.contains("podSource"), "{text}");
    }
}
