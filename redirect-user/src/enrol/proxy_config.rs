//! `proxy.istio.io/config`: the part of a pod's ProxyConfig that its owner writes, as YAML or JSON.
//!
//! The injector makes variables of the proxy's container out of `proxyMetadata`. Where the containers cannot
//! be seen, the annotation says the same.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::policy::grammar::shorten;

/// The annotation.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// What is read of it; the rest is Envoy's business.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Variables of the proxy's container.
    #[serde(deserialize_with = "texts")]
    pub proxy_metadata: BTreeMap<String, String>,
    /// The port that kubelet's probes go to, as `status.sidecar.istio.io/port`.
    pub status_port: Option<u16>,
}

impl ProxyConfig {
    /// Reads the annotation's value.
    ///
    /// # Errors
    /// It is no YAML, or a key that is read here has another type.
    pub fn parse(text: &str) -> Result<ProxyConfig, String> {
        if text.trim().is_empty() {
            return Ok(ProxyConfig::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let text = error.to_string();
            shorten(text.lines().next().unwrap_or("it cannot be read"))
        })
    }
}

/// Values of `proxyMetadata` are text; an unquoted `true` or `15020` is taken as it is written, as in Istio.
fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Bool(bool),
        Number(i64),
        Text(String),
    }
    let values = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
    let text = |value| match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::Text(value) => value,
    };
    Ok(values.into_iter().map(|(name, value)| (name, text(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_are_read_and_the_rest_is_left_to_envoy() {
        let yaml = "concurrency: 2\nproxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n  X: true\n  N: 7\nstatusPort: 18000\ntracing:\n  sampling: 1.5\n";
        let json = r#"{"concurrency":2,"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","X":true,"N":7},"statusPort":18000}"#;
        for text in [yaml, json] {
            let config = ProxyConfig::parse(text).unwrap();
            assert_eq!(config.proxy_metadata["ISTIO_META_DNS_CAPTURE"], "true", "{text}");
            assert_eq!(
                (config.proxy_metadata["X"].as_str(), config.proxy_metadata["N"].as_str()),
                ("true", "7")
            );
            assert_eq!(config.status_port, Some(18000));
        }
        for nothing in ["", "\n", "{}", "proxyMetadata:\n", "holdApplicationUntilProxyStarts: true"] {
            assert_eq!(ProxyConfig::parse(nothing), Ok(ProxyConfig::default()), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_config_is_refused_in_one_line() {
        for bad in ["[", "proxyMetadata: [1]", "statusPort: eighty", "just words"] {
            let problem = ProxyConfig::parse(bad).unwrap_err();
            assert!(!problem.is_empty() && !problem.contains('\n'), "{bad}: {problem}");
        }
    }
}
