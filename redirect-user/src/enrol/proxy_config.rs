//! `proxy.istio.io/config`: the part of a pod's ProxyConfig that its owner writes, as YAML or JSON.
//!
//! The injector makes variables of the proxy's container out of `proxyMetadata`. Where the containers cannot
//! be seen, the annotation says the same.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle};

use crate::policy::grammar::shorten;

/// The annotation.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";

const METADATA: &str = "proxyMetadata";
const STATUS_PORT: &str = "statusPort";

/// What is read of it; the rest is Envoy's business.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Variables of the proxy's container.
    pub proxy_metadata: BTreeMap<String, String>,
    /// The port that kubelet's probes go to, as `status.sidecar.istio.io/port`.
    pub status_port: Option<u16>,
}

impl ProxyConfig {
    /// Reads the annotation's value. Values are text as they are written, as Istio reads them.
    ///
    /// # Errors
    /// It is no YAML, or a key that is read here has another type.
    pub fn parse(text: &str) -> Result<ProxyConfig, String> {
        let mut walk = Walk::default();
        for event in Parser::new_from_str(text) {
            let (event, _) = event.map_err(|error| one_line(&error.to_string()))?;
            match event {
                Event::Scalar(value, style, ..) => walk.scalar(&value, style == ScalarStyle::Plain)?,
                Event::MappingStart(..) => walk.open(Level::Mapping(None))?,
                Event::SequenceStart(..) => walk.open(Level::Sequence)?,
                Event::MappingEnd | Event::SequenceEnd => walk.close(),
                Event::Alias(_) => walk.alias()?,
                Event::DocumentEnd => break,
                _ => {}
            }
        }
        Ok(walk.config)
    }
}

fn one_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or("it cannot be read"))
}

/// Where in the document an event is: a list of what is open, so that no depth of nesting needs a stack.
#[derive(Default)]
struct Walk {
    levels: Vec<Level>,
    config: ProxyConfig,
}

enum Level {
    /// A mapping, and the key whose value comes next.
    Mapping(Option<String>),
    Sequence,
}

impl Walk {
    /// The keys that lead to the value that comes next, as far as they matter; `None` below a list.
    fn path(&self) -> Option<Vec<&str>> {
        self.levels
            .iter()
            .map(|level| match level {
                Level::Mapping(Some(key)) => Some(key.as_str()),
                Level::Mapping(None) | Level::Sequence => None,
            })
            .collect()
    }

    /// A key, or a value that is text.
    fn scalar(&mut self, value: &str, plain: bool) -> Result<(), String> {
        if let Some(Level::Mapping(key @ None)) = self.levels.last_mut() {
            *key = Some(value.to_owned());
            return Ok(());
        }
        let null = plain && matches!(value, "" | "~" | "null" | "Null" | "NULL");
        match self.path().as_deref() {
            _ if null => {}
            Some([]) => return Err("it is no mapping".to_owned()),
            Some([METADATA]) => return Err(format!("{METADATA} is no mapping")),
            Some([STATUS_PORT]) => {
                let port =
                    value.parse().map_err(|_| format!("{STATUS_PORT} is {value:?}, which is no port"))?;
                self.config.status_port = Some(port);
            }
            Some([METADATA, name]) => {
                let name = (*name).to_owned();
                self.config.proxy_metadata.insert(name, value.to_owned());
            }
            _ => {}
        }
        self.valued();
        Ok(())
    }

    /// A mapping or a list begins.
    fn open(&mut self, level: Level) -> Result<(), String> {
        if matches!(self.levels.last(), Some(Level::Mapping(None))) {
            return Err("a key is no text".to_owned());
        }
        let mapping = matches!(level, Level::Mapping(_));
        match self.path().as_deref() {
            Some([]) if !mapping => return Err("it is no mapping".to_owned()),
            Some([METADATA]) if !mapping => return Err(format!("{METADATA} is no mapping")),
            Some([STATUS_PORT]) => return Err(format!("{STATUS_PORT} is no port")),
            Some([METADATA, name]) => return Err(format!("{METADATA}.{name} is no text")),
            _ => {}
        }
        self.levels.push(level);
        Ok(())
    }

    fn close(&mut self) {
        self.levels.pop();
        self.valued();
    }

    /// What an alias stands for is not kept; it may stand where it decides nothing.
    fn alias(&mut self) -> Result<(), String> {
        let decides = |path: &[&str]| matches!(path, [] | [METADATA] | [STATUS_PORT] | [METADATA, _]);
        let key = matches!(self.levels.last(), Some(Level::Mapping(None)));
        if key || self.path().as_deref().is_some_and(decides) {
            return Err("an alias (*) stands where a plain value is needed".to_owned());
        }
        self.valued();
        Ok(())
    }

    /// The value of the innermost key is complete.
    fn valued(&mut self) {
        if let Some(Level::Mapping(key)) = self.levels.last_mut() {
            *key = None;
        }
    }
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
    fn only_the_top_level_counts_and_depth_does_no_harm() {
        let nested =
            "a:\n  statusPort: 1\n  proxyMetadata: x\nb: [{statusPort: 2}, [proxyMetadata]]\nstatusPort: 3\n";
        let expected = ProxyConfig { status_port: Some(3), ..ProxyConfig::default() };
        assert_eq!(ProxyConfig::parse(nested), Ok(expected));
        let deep = format!("x: {}1{}\n", "[".repeat(20_000), "]".repeat(20_000));
        let _ = ProxyConfig::parse(&deep);
        let alias = "x: &x 5\ny: *x\nproxyMetadata: {A: b}\n";
        assert_eq!(ProxyConfig::parse(alias).unwrap().proxy_metadata["A"], "b");
    }

    #[test]
    fn what_is_no_proxy_config_is_refused_in_one_line() {
        for bad in [
            "[",
            "[1]",
            "just words",
            "proxyMetadata: [1]",
            "proxyMetadata: x",
            "proxyMetadata:\n  A:\n    B: c",
            "statusPort: eighty",
            "statusPort: 70000",
            "statusPort: {}",
            "a: &a {}\nproxyMetadata: *a",
            "{[1]: 2}",
        ] {
            let problem = ProxyConfig::parse(bad).unwrap_err();
            assert!(!problem.is_empty() && !problem.contains('\n'), "{bad}: {problem}");
        }
    }
}
