//! The plugin's rules, read from the entry that the agent keeps, so that both decide alike.

use std::collections::BTreeMap;

use redirect_user::enrol::Rules;
use redirect_user::enrol::runtime_class::RuntimeClasses;
use redirect_user::policy::owner_groups::Variables;
use redirect_user::policy::parameters::Parameter;
use redirect_user::policy::{Policy, Proxy};
use serde::Deserialize;
use thiserror::Error;

/// Why an entry's keys make no rules.
#[derive(Debug, Error)]
pub enum Error {
    /// A key has the wrong type.
    #[error("the plugin's keys: {0}")]
    Keys(#[from] serde_json::Error),
    /// A default is none.
    #[error("the plugin's key defaults: {name}: {problem}")]
    Default {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    exclude_namespaces: Vec<String>,
    proxy: ProxyKeys,
    dns_capture: bool,
    defaults: BTreeMap<String, String>,
    forbid_opt_out: bool,
    refuse_runtime_classes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyKeys {
    container: String,
    uid: u32,
    gid: u32,
    outbound_port: u16,
    inbound_port: u16,
    dns_port: u16,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry {
            exclude_namespaces: vec!["istio-system".to_owned(), "kube-system".to_owned()],
            proxy: ProxyKeys::default(),
            dns_capture: false,
            defaults: BTreeMap::new(),
            forbid_opt_out: false,
            refuse_runtime_classes: None,
        }
    }
}

impl Default for ProxyKeys {
    fn default() -> ProxyKeys {
        let Proxy { uid, gid, outbound_port, inbound_port, dns_port } = Proxy::default();
        ProxyKeys { container: "istio-proxy".to_owned(), uid, gid, outbound_port, inbound_port, dns_port }
    }
}

/// The rules of an entry's text.
///
/// # Errors
/// A key has the wrong type, or a default makes no sense.
pub fn of_entry(entry: &str) -> Result<Rules, Error> {
    let entry: Entry = serde_json::from_str(entry)?;
    let ProxyKeys { container, uid, gid, outbound_port, inbound_port, dns_port } = entry.proxy;
    let mut defaults = Policy {
        proxy: Proxy { uid, gid, outbound_port, inbound_port, dns_port },
        dns_capture: entry.dns_capture,
        ..Policy::default()
    };
    for (name, value) in entry.defaults {
        let parameter = Parameter::named(&name).ok_or_else(|| Error::Default {
            name: name.clone(),
            problem: "there is no such annotation".to_owned(),
        })?;
        let set = parameter.set(&mut defaults, &value);
        set.map_err(|problem| Error::Default { name, problem: problem.to_string() })?;
    }
    Ok(Rules {
        exclude_namespaces: entry.exclude_namespaces,
        proxy_container: container,
        defaults,
        forbid_opt_out: entry.forbid_opt_out,
        refuse_runtime_classes: entry
            .refuse_runtime_classes
            .map_or_else(RuntimeClasses::default, RuntimeClasses::new),
        owner_groups: Variables::from_env(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entrys_keys_count_and_the_rest_is_the_plugins_default() {
        let rules =
            of_entry(r#"{"type":"redirect-cni","proxy":{"uid":7},"podSource":"kubernetes"}"#).unwrap();
        assert_eq!((rules.defaults.proxy.uid, rules.defaults.proxy.gid), (7, 1337));
        assert_eq!(rules.exclude_namespaces, ["istio-system", "kube-system"]);
        let text = of_entry(r#"{"defaults":{"noSuchThing":"x"}}"#).unwrap_err().to_string();
        assert!(text.contains("noSuchThing"), "{text}");
    }
}
