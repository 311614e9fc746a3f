//! The network configuration on stdin as types.
//!
//! Every key is read on its own, so that an error names the key, unknown keys do no harm, and each verb reads
//! only what it needs: a mistake in `excludeNamespaces` must not keep a pod from being deleted. DEL needs two
//! keys, `bpffsRoot` and `stateDir`; how much is logged, and where, fails no verb.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redirect_user::enrol::Rules;
use redirect_user::enrol::ask_agent::AskAgent;
use redirect_user::enrol::ask_runtime::AskRuntime;
use redirect_user::enrol::protocol::LOG_SOCKET;
use redirect_user::enrol::runtime_class::RuntimeClasses;
use redirect_user::enrol::source::PodSource;
use redirect_user::node::Node;
use redirect_user::policy::annotations::Annotations;
use redirect_user::policy::grammar::shorten;
use redirect_user::policy::owner_groups::Variables;
use redirect_user::policy::parameters::{PARAMETERS, Parameter};
use redirect_user::policy::{Guard, Policy, Proxy};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tracing::level_filters::LevelFilter;

use crate::error::Error;
use crate::version::Version;

/// Where the agent listens unless the configuration says otherwise.
const AGENT_SOCKET: &str = "/run/redirect-cni/agent.sock";
/// How long an ADD waits for the agent. The kubelet tries again anyway, and while an ADD waits the pod cannot
/// be deleted.
const AGENT_TIMEOUT: u64 = 5;
/// The capability with which a runtime hands over the pod's annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The configuration: a version, and keys that are read when they are needed.
#[derive(Debug)]
pub(crate) struct Conf {
    pub(crate) version: Version,
    keys: Object,
}

impl Conf {
    /// Reads stdin's content as far as every verb but DEL needs it.
    pub(crate) fn read(text: &[u8]) -> Result<Conf, Error> {
        let keys = Object::read(text)?;
        // A configuration without the key is older than the key, which came with 0.2.0.
        let found: String = keys.get("cniVersion")?.unwrap_or_default();
        let version = Version::parse(&found).ok_or(Error::Version { found })?;
        Ok(Conf { version, keys })
    }

    /// Reads it for DEL, whose answer is the same in all versions: a version that is not spoken here must not
    /// keep a pod from being deleted, and an error is told in the newest.
    pub(crate) fn read_for_del(text: &[u8]) -> Result<Conf, Error> {
        let keys = Object::read(text)?;
        let named = keys.get::<String>("cniVersion").ok().flatten();
        let version = named.and_then(|name| Version::parse(&name)).unwrap_or(Version::NEWEST);
        Ok(Conf { version, keys })
    }

    /// Where pins and records are, and how long to wait for the node's lock.
    pub(crate) fn node(&self) -> Result<Node, Error> {
        Ok(Node { lock_timeout: self.lock_timeout()?, ..self.node_for_del()? })
    }

    /// The same from two keys: a bad timeout must not keep a pod from being deleted.
    pub(crate) fn node_for_del(&self) -> Result<Node, Error> {
        let bpffs = self.keys.path_or("bpffsRoot", Node::DEFAULT_BPFFS)?;
        let node = Node::new(bpffs, self.keys.path_or("stateDir", Node::DEFAULT_STATE_DIR)?);
        Ok(Node { lock_timeout: self.lock_timeout().unwrap_or(Node::DEFAULT_LOCK_TIMEOUT), ..node })
    }

    fn lock_timeout(&self) -> Result<Duration, Error> {
        self.seconds("lockTimeoutSeconds", Node::DEFAULT_LOCK_TIMEOUT.as_secs())
    }

    /// The network's name.
    pub(crate) fn network(&self) -> Result<Option<String>, Error> {
        self.keys.get("name")
    }

    /// Namespaces whose pods are left alone.
    pub(crate) fn exclude_namespaces(&self) -> Result<Vec<String>, Error> {
        let default = || vec!["istio-system".to_owned(), "kube-system".to_owned()];
        Ok(self.keys.get("excludeNamespaces")?.unwrap_or_else(default))
    }

    /// Which pods are ours.
    pub(crate) fn rules(&self) -> Result<Rules, Error> {
        let proxy = self.keys.object("proxy")?;
        Ok(Rules {
            exclude_namespaces: self.exclude_namespaces()?,
            proxy_container: proxy.get("container")?.unwrap_or_else(|| "istio-proxy".to_owned()),
            defaults: self.defaults()?,
            forbid_opt_out: self.keys.get("forbidOptOut")?.unwrap_or(false),
            refuse_runtime_classes: self
                .keys
                .get("refuseRuntimeClasses")?
                .map_or_else(RuntimeClasses::default, RuntimeClasses::new),
            owner_groups: Variables::from_env(),
        })
    }

    /// What a pod without any annotation gets on this node.
    fn defaults(&self) -> Result<Policy, Error> {
        let mut policy = Policy {
            proxy: self.proxy()?,
            dns_capture: self.keys.get("dnsCapture")?.unwrap_or(false),
            guard: self.guard()?,
            ..Policy::default()
        };
        let defaults = self.keys.object("defaults")?;
        for name in defaults.keys.keys() {
            // A misspelt name would change which traffic is captured, unseen.
            let Some(parameter) = Parameter::named(name) else {
                let names: Vec<_> = PARAMETERS.iter().map(|parameter| parameter.name).collect();
                return Err(defaults
                    .invalid(name, format!("there is no such annotation; known are {}", names.join(", "))));
            };
            let Some(value) = defaults.get::<String>(name)? else { continue };
            let invalid = |problem| defaults.invalid(name, format!("{:?}: {problem}", shorten(&value)));
            parameter.set_default(&mut policy, &value).map_err(invalid)?;
        }
        Ok(policy)
    }

    /// The node's word on the guard; a pod's annotation goes before it.
    fn guard(&self) -> Result<Guard, Error> {
        let Some(name) = self.keys.get::<String>("guard")? else { return Ok(Guard::default()) };
        Guard::from_name(&name).ok_or_else(|| Error::Unsupported {
            key: "guard",
            value: shorten(&name),
            supported: "\"enforce\", \"audit\" and \"off\"",
        })
    }

    fn proxy(&self) -> Result<Proxy, Error> {
        let proxy = self.keys.object("proxy")?;
        let default = Proxy::default();
        Ok(Proxy {
            uid: proxy.get("uid")?.unwrap_or(default.uid),
            gid: proxy.get("gid")?.unwrap_or(default.gid),
            outbound_port: proxy.port("outboundPort", default.outbound_port)?,
            inbound_port: proxy.port("inboundPort", default.inbound_port)?,
            dns_port: proxy.port("dnsPort", default.dns_port)?,
        })
    }

    /// Where a pod's details come from.
    pub(crate) fn pod_source(&self) -> Result<Box<dyn PodSource>, Error> {
        let socket = self.keys.path_or("agentSocket", AGENT_SOCKET)?;
        let timeout = self.agent_timeout()?;
        let source: String = self.keys.get("podSource")?.unwrap_or_else(|| "kubernetes".to_owned());
        match source.as_str() {
            "kubernetes" => Ok(Box::new(AskAgent { socket, timeout })),
            "annotations" => Ok(Box::new(AskRuntime)),
            _ => Err(Error::Unsupported {
                key: "podSource",
                value: shorten(&source),
                supported: "\"kubernetes\" and \"annotations\"",
            }),
        }
    }

    fn agent_timeout(&self) -> Result<Duration, Error> {
        self.seconds("agentTimeoutSeconds", AGENT_TIMEOUT)
    }

    fn seconds(&self, key: &str, default: u64) -> Result<Duration, Error> {
        let seconds = self.keys.get(key)?.unwrap_or(default);
        if (1..=600).contains(&seconds) {
            return Ok(Duration::from_secs(seconds));
        }
        Err(self.keys.invalid(key, format!("{seconds} is not between 1 and 600")))
    }

    /// Where cgroup v2 is mounted, if the configuration says so.
    pub(crate) fn cgroup_root(&self) -> Result<Option<PathBuf>, Error> {
        self.keys.path("cgroupRoot")
    }

    /// The pod's annotations, if the runtime handed them over: a pod without any has `null` there.
    pub(crate) fn handed_over_annotations(&self) -> Result<Option<Annotations>, Error> {
        let runtime = self.keys.object("runtimeConfig")?;
        if !runtime.keys.contains_key(POD_ANNOTATIONS) {
            return Ok(None);
        }
        Ok(Some(runtime.get(POD_ANNOTATIONS)?.unwrap_or_default()))
    }

    /// The pod's cgroup, if the runtime said which.
    pub(crate) fn cgroup_path(&self) -> Result<Option<String>, Error> {
        self.keys.object("runtimeConfig")?.get("cgroupPath")
    }

    /// The attachments that GC keeps, as (container, interface).
    pub(crate) fn valid_attachments(&self) -> Result<Vec<(String, String)>, Error> {
        const KEY: &str = "cni.dev/valid-attachments";
        let list: Option<Vec<BTreeMap<String, Box<RawValue>>>> = self.keys.get(KEY)?;
        // To take an absent list for an empty one would cut off every pod.
        let list = list.ok_or_else(|| self.keys.invalid(KEY, "is required for GC".to_owned()))?;
        let read = |(index, keys)| {
            let entry = Object { path: format!("{KEY}[{index}]"), keys };
            let part = |key: &str| {
                entry.get::<String>(key)?.ok_or_else(|| entry.invalid(key, "is missing".to_owned()))
            };
            Ok((part("containerID")?, part("ifname")?))
        };
        list.into_iter().enumerate().map(read).collect()
    }

    /// The result of the plugins before this one.
    pub(crate) fn prev_result(&self) -> Option<&RawValue> {
        self.keys.keys.get("prevResult").map(Box::as_ref).filter(|raw| raw.get() != "null")
    }

    /// How much is logged, and where besides stderr. What is wrong with either is told in the log itself, and
    /// the default is used: a setting of the log fails no verb.
    pub(crate) fn log(&self) -> LogPlan {
        let mut problems = Vec::new();
        let level = self.log_level().unwrap_or_else(|error| {
            problems.push(format!("{}; logging at info", error.one_line()));
            LevelFilter::INFO
        });
        let file = self.keys.path("logFile").unwrap_or_else(|error| {
            problems.push(format!("{}; logging to stderr only", error.one_line()));
            None
        });
        let agent = self.keys.path_or("agentSocket", AGENT_SOCKET).ok();
        LogPlan { level, file, agent: agent.map(|socket| socket.with_file_name(LOG_SOCKET)), problems }
    }

    fn log_level(&self) -> Result<LevelFilter, Error> {
        let level: String = self.keys.get("logLevel")?.unwrap_or_else(|| "info".to_owned());
        match level.as_str() {
            "off" => Ok(LevelFilter::OFF),
            "error" => Ok(LevelFilter::ERROR),
            "warn" => Ok(LevelFilter::WARN),
            "info" => Ok(LevelFilter::INFO),
            "debug" => Ok(LevelFilter::DEBUG),
            "trace" => Ok(LevelFilter::TRACE),
            _ => {
                let supported = "off, error, warn, info, debug and trace";
                Err(Error::Unsupported { key: "logLevel", value: shorten(&level), supported })
            }
        }
    }
}

/// How the log is kept.
#[derive(Debug)]
pub(crate) struct LogPlan {
    pub(crate) level: LevelFilter,
    /// The file besides stderr.
    pub(crate) file: Option<PathBuf>,
    /// The agent's socket for lines, which need not be there.
    pub(crate) agent: Option<PathBuf>,
    /// What was wrong with the settings, one sentence each.
    pub(crate) problems: Vec<String>,
}

/// A JSON object whose values are read one by one.
#[derive(Debug)]
struct Object {
    /// Where it is in the configuration, for errors.
    path: String,
    keys: BTreeMap<String, Box<RawValue>>,
}

impl Object {
    /// The whole configuration.
    fn read(text: &[u8]) -> Result<Object, Error> {
        let keys = serde_json::from_slice(text).map_err(|error| Error::Decode {
            what: "the network configuration on stdin".to_owned(),
            problem: error.to_string(),
        })?;
        Ok(Object { path: String::new(), keys })
    }

    /// A key's value; `null` is as good as absent.
    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(raw) = self.keys.get(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|error| self.invalid(key, plain(&error, raw.get())))
    }

    fn object(&self, key: &str) -> Result<Object, Error> {
        Ok(Object { path: self.full(key), keys: self.get(key)?.unwrap_or_default() })
    }

    fn port(&self, key: &str, default: u16) -> Result<u16, Error> {
        match self.get(key)? {
            Some(0) => Err(self.invalid(key, "0 is not a port".to_owned())),
            port => Ok(port.unwrap_or(default)),
        }
    }

    /// An absolute path: the plugin's working directory is the runtime's business.
    fn path(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        match self.get::<String>(key)? {
            Some(path) if !Path::new(&path).is_absolute() || path.contains('\0') => {
                Err(self.invalid(key, format!("{:?} is not an absolute path", shorten(&path))))
            }
            path => Ok(path.map(PathBuf::from)),
        }
    }

    fn path_or(&self, key: &str, default: &str) -> Result<PathBuf, Error> {
        Ok(self.path(key)?.unwrap_or_else(|| PathBuf::from(default)))
    }

    fn invalid(&self, key: &str, problem: String) -> Error {
        Error::Conf { key: self.full(key), problem }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// serde's words without the position, which counts from the value's own beginning, and with the value.
fn plain(error: &serde_json::Error, value: &str) -> String {
    let text = error.to_string();
    let problem = text.split(" at line ").next().unwrap_or(&text);
    format!("{problem} ({})", shorten(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(keys: &str) -> Conf {
        Conf::read(format!(r#"{{"cniVersion":"1.0.0"{keys}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn all_keys_but_the_version_are_optional() {
        let conf = conf("");
        assert_eq!(conf.node().unwrap(), Node::default());
        let rules = conf.rules().unwrap();
        assert_eq!(rules.exclude_namespaces, ["istio-system", "kube-system"]);
        assert_eq!((rules.proxy_container.as_str(), rules.defaults), ("istio-proxy", Policy::default()));
        assert_eq!(conf.handed_over_annotations().unwrap(), None);
        assert!(conf.prev_result().is_none() && conf.cgroup_root().unwrap().is_none());
    }

    #[test]
    fn a_version_is_spoken_or_not() {
        for name in Version::NAMES {
            let text = format!(r#"{{"cniVersion":{name:?}}}"#);
            assert_eq!(Conf::read(text.as_bytes()).unwrap().version.name(), name);
        }
        for text in
            [r#"{}"#, r#"{"cniVersion":"0.2.0"}"#, r#"{"cniVersion":"1.2.0"}"#, r#"{"cniVersion":null}"#]
        {
            assert!(matches!(Conf::read(text.as_bytes()), Err(Error::Version { .. })), "{text}");
        }
        for text in ["", "[]", "null", "{", r#""x""#, "{}{}", "\u{feff}{}"] {
            assert!(matches!(Conf::read(text.as_bytes()), Err(Error::Decode { .. })), "{text}");
        }
    }

    #[test]
    fn a_wrong_type_names_the_key_and_shows_the_value() {
        type Read = fn(&Conf) -> Option<Error>;
        let reads: &[(&str, &str, Read)] = &[
            (r#""bpffsRoot":5"#, "bpffsRoot", |conf| conf.node().err()),
            (r#""stateDir":"relative""#, "stateDir", |conf| conf.node().err()),
            (r#""excludeNamespaces":"kube-system""#, "excludeNamespaces", |conf| conf.rules().err()),
            (r#""excludeNamespaces":[1]"#, "excludeNamespaces", |conf| conf.rules().err()),
            (r#""proxy":[]"#, "proxy", |conf| conf.rules().err()),
            (r#""proxy":{"uid":"1337"}"#, "proxy.uid", |conf| conf.rules().err()),
            (r#""proxy":{"gid":-1}"#, "proxy.gid", |conf| conf.rules().err()),
            (r#""proxy":{"inboundPort":70000}"#, "proxy.inboundPort", |conf| conf.rules().err()),
            (r#""proxy":{"dnsPort":0}"#, "proxy.dnsPort", |conf| conf.rules().err()),
            (r#""guard":true"#, "guard", |conf| conf.rules().err()),
            (r#""dnsCapture":"yes""#, "dnsCapture", |conf| conf.rules().err()),
            (r#""defaults":[]"#, "defaults", |conf| conf.rules().err()),
            (r#""defaults":{"excludeOutboundPorts":[25]}"#, "defaults.excludeOutboundPorts", |conf| {
                conf.rules().err()
            }),
            (r#""defaults":{"excludeOutboundPorts":"smtp"}"#, "defaults.excludeOutboundPorts", |conf| {
                conf.rules().err()
            }),
            (r#""defaults":{"excludeOutboundIpRanges":""}"#, "defaults.excludeOutboundIpRanges", |conf| {
                conf.rules().err()
            }),
            (r#""forbidOptOut":1"#, "forbidOptOut", |conf| conf.rules().err()),
            (r#""refuseRuntimeClasses":"kata""#, "refuseRuntimeClasses", |conf| conf.rules().err()),
            (r#""agentSocket":"agent.sock""#, "agentSocket", |conf| conf.pod_source().err()),
            (r#""agentTimeoutSeconds":0"#, "agentTimeoutSeconds", |conf| conf.pod_source().err()),
            (r#""agentTimeoutSeconds":1.5"#, "agentTimeoutSeconds", |conf| conf.pod_source().err()),
            (r#""lockTimeoutSeconds":0"#, "lockTimeoutSeconds", |conf| conf.node().err()),
            (r#""cgroupRoot":true"#, "cgroupRoot", |conf| conf.cgroup_root().err()),
            (r#""runtimeConfig":"x""#, "runtimeConfig", |conf| conf.cgroup_path().err()),
            (r#""runtimeConfig":{"cgroupPath":[]}"#, "runtimeConfig.cgroupPath", |conf| {
                conf.cgroup_path().err()
            }),
            (
                r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}"#,
                "runtimeConfig.io.kubernetes.cri.pod-annotations",
                |conf| conf.handed_over_annotations().err(),
            ),
            (r#""cni.dev/valid-attachments":{}"#, "cni.dev/valid-attachments", |conf| {
                conf.valid_attachments().err()
            }),
            (
                r#""cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"},{"containerID":"c"}]"#,
                "cni.dev/valid-attachments[1].ifname",
                |conf| conf.valid_attachments().err(),
            ),
            (r#""name":"x""#, "cni.dev/valid-attachments", |conf| conf.valid_attachments().err()),
        ];
        for (keys, key, read) in reads {
            match read(&conf(&format!(",{keys}"))) {
                Some(Error::Conf { key: named, .. }) => assert_eq!(named, *key),
                other => panic!("{keys}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_node_has_defaults_in_the_annotations_grammar() {
        let rules = conf(
            r#","defaults":{"excludeOutboundIPRanges":"10.96.0.0/12","includeInboundPorts":null},
                         "proxy":{"uid":7},"forbidOptOut":true,"refuseRuntimeClasses":["wasm"]"#,
        )
        .rules()
        .unwrap();
        let expected = Policy {
            exclude_outbound_ip_ranges: vec!["10.96.0.0/12".parse().unwrap()],
            proxy: Proxy { uid: 7, ..Proxy::default() },
            node_defaults: ["excludeOutboundIPRanges".to_owned()].into(),
            ..Policy::default()
        };
        assert_eq!((rules.defaults, rules.forbid_opt_out), (expected, true));
        assert!(
            rules.refuse_runtime_classes.contain("wasm") && !rules.refuse_runtime_classes.contain("kata")
        );
        let named = conf(r#","defaults":{"excludeOutboundPort":"25"}"#).rules().unwrap_err().to_string();
        assert!(named.contains("excludeOutboundPorts"), "{named}");
    }

    #[test]
    fn values_outside_a_fixed_set_are_unsupported() {
        assert!(matches!(
            conf(r#","podSource":"crd""#).pod_source().err(),
            Some(Error::Unsupported { key: "podSource", value, .. }) if value == "crd"
        ));
    }

    #[test]
    fn a_bad_log_setting_is_a_remark_and_the_default() {
        for (keys, named) in [
            (r#","logLevel":"warning""#, "logLevel is \"warning\""),
            (r#","logLevel":3"#, "configuration key logLevel:"),
            (r#","logFile":"cni.log""#, "configuration key logFile: \"cni.log\" is not an absolute path"),
            (r#","logFile":false"#, "configuration key logFile:"),
        ] {
            let LogPlan { level, file, problems, .. } = conf(keys).log();
            assert_eq!((level, file), (LevelFilter::INFO, None), "{keys}");
            assert!(problems.len() == 1 && problems[0].contains(named), "{keys}: {problems:?}");
        }
        let LogPlan { level, file, problems, .. } = conf(r#","logLevel":"warn","logFile":"/x""#).log();
        assert_eq!((level, file), (LevelFilter::WARN, Some(PathBuf::from("/x"))));
        assert!(problems.is_empty());
    }

    #[test]
    fn a_pod_is_deleted_in_whichever_version() {
        for text in [r#"{}"#, r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":1}"#, r#"{"cniVersion":null}"#] {
            assert_eq!(Conf::read_for_del(text.as_bytes()).unwrap().version, Version::NEWEST, "{text}");
        }
        let old = Conf::read_for_del(br#"{"cniVersion":"0.3.1"}"#).unwrap();
        assert_eq!(old.version, Version::V0_3_1);
        assert!(matches!(Conf::read_for_del(b"{"), Err(Error::Decode { .. })));
    }

    #[test]
    fn null_annotations_were_handed_over_and_absent_ones_were_not() {
        let null = conf(r#","runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}"#);
        assert_eq!(null.handed_over_annotations().unwrap(), Some(Annotations::new()));
        let absent = conf(r#","runtimeConfig":{"portMappings":[]}"#);
        assert_eq!(absent.handed_over_annotations().unwrap(), None);
    }
}
