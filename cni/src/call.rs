//! The environment of a call as types: which verb, on which container, for which pod.

use std::ffi::OsString;
use std::path::PathBuf;

use redirect_user::ids::{AttachmentId, PodRef};

use crate::error::Error;

/// What the runtime wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Add(Sandbox),
    Del(AttachmentId),
    Check(Sandbox),
    Gc,
    Status,
    Version,
}

/// A pod sandbox as the runtime names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) id: AttachmentId,
    pub(crate) netns: PathBuf,
    /// Absent for a container outside Kubernetes.
    pub(crate) pod: Option<PodRef>,
}

impl Call {
    /// Reads the variables through `get`.
    pub(crate) fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Call, Error> {
        let env = Env(get);
        match env.required("CNI_COMMAND")?.as_str() {
            "ADD" => env.sandbox().map(Call::Add),
            // Neither the namespace nor the arguments matter any more, and neither may keep a pod from going
            // away.
            "DEL" => env.id().map(Call::Del),
            "CHECK" => env.sandbox().map(Call::Check),
            "GC" => Ok(Call::Gc),
            "STATUS" => Ok(Call::Status),
            "VERSION" => Ok(Call::Version),
            other => {
                Err(invalid("CNI_COMMAND", format!("is {other:?}, which is no verb of the specification")))
            }
        }
    }

    /// The verb.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Call::Add(_) => "ADD",
            Call::Del(_) => "DEL",
            Call::Check(_) => "CHECK",
            Call::Gc => "GC",
            Call::Status => "STATUS",
            Call::Version => "VERSION",
        }
    }
}

struct Env<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Env<F> {
    fn sandbox(&self) -> Result<Sandbox, Error> {
        let id = self.id()?;
        let netns = PathBuf::from(self.required("CNI_NETNS")?);
        let pod = pod(&self.optional("CNI_ARGS")?)?;
        Ok(Sandbox { id, netns, pod })
    }

    fn id(&self) -> Result<AttachmentId, Error> {
        let container_id = self.required("CNI_CONTAINERID")?;
        check_container_id(&container_id)?;
        let ifname = self.required("CNI_IFNAME")?;
        check_ifname(&ifname)?;
        Ok(AttachmentId { container_id, ifname })
    }

    fn required(&self, variable: &'static str) -> Result<String, Error> {
        let value = self.optional(variable)?;
        if value.is_empty() {
            Err(invalid(variable, "is not set; the runtime sets it for this verb".to_owned()))
        } else {
            Ok(value)
        }
    }

    fn optional(&self, variable: &'static str) -> Result<String, Error> {
        let value = (self.0)(variable).unwrap_or_default();
        value.into_string().map_err(|value| invalid(variable, format!("is not UTF-8: {value:?}")))
    }
}

fn invalid(variable: &'static str, problem: String) -> Error {
    Error::Env { variable, problem }
}

/// The specification's alphabet for container ids.
fn check_container_id(id: &str) -> Result<(), Error> {
    let first = id.starts_with(|first: char| first.is_ascii_alphanumeric());
    if first && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return Ok(());
    }
    Err(invalid(
        "CNI_CONTAINERID",
        format!("is {id:?}: a letter or digit, then letters, digits and _.- are allowed"),
    ))
}

/// What the kernel accepts as an interface name.
fn check_ifname(name: &str) -> Result<(), Error> {
    let problem = if name.len() > 15 {
        "is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "is . or .."
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "contains a slash, a colon or a space"
    } else {
        return Ok(());
    };
    Err(invalid("CNI_IFNAME", format!("is {name:?}, which {problem}")))
}

/// `CNI_ARGS` as `key=value` pairs; unknown keys are an error unless `IgnoreUnknown` is true, as CNI's
/// convention has it. Without a namespace or a name it is not a Kubernetes pod.
fn pod(args: &str) -> Result<Option<PodRef>, Error> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let (mut ignore_unknown, mut unknown) = (false, Vec::new());
    for pair in args.split(';').filter(|_| !args.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| invalid("CNI_ARGS", format!("has {pair:?} where key=value is expected")))?;
        let value = Some(value.to_owned()).filter(|value| !value.is_empty());
        match key {
            "K8S_POD_NAMESPACE" => namespace = value,
            "K8S_POD_NAME" => name = value,
            "K8S_POD_UID" => uid = value,
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore_unknown = is_true(value.as_deref().unwrap_or(""))?,
            other => unknown.push(other.escape_debug().to_string()),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(invalid(
            "CNI_ARGS",
            format!("has unknown keys and no IgnoreUnknown=1: {}", unknown.join(", ")),
        ));
    }
    check_uid(uid.as_deref())?;
    check_name("K8S_POD_NAMESPACE", namespace.as_deref())?;
    check_name("K8S_POD_NAME", name.as_deref())?;
    Ok(namespace.zip(name).map(|(namespace, name)| PodRef { namespace, name, uid }))
}

fn is_true(value: &str) -> Result<bool, Error> {
    redirect_user::policy::grammar::boolean(value)
        .map_err(|problem| invalid("CNI_ARGS", format!("has a bad IgnoreUnknown: {problem}")))
}

/// Namespace and name are shown in logs and in the pod's events, where a line feed would begin a line that
/// looks like one of ours.
fn check_name(key: &str, name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name) if name.contains(char::is_control) => {
            Err(invalid("CNI_ARGS", format!("has {key}={name:?}: a name has no control characters")))
        }
        _ => Ok(()),
    }
}

/// A uid becomes part of a path.
fn check_uid(uid: Option<&str>) -> Result<(), Error> {
    match uid {
        Some(uid) if !uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => Err(invalid(
            "CNI_ARGS",
            format!("has K8S_POD_UID={uid:?}: letters, digits and dashes are allowed"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(env: &[(&str, &str)]) -> Result<Call, Error> {
        let get =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Call::parse(get)
    }

    fn pod_of(args: &str) -> Result<Option<PodRef>, String> {
        pod(args).map_err(|error| error.to_string())
    }

    #[test]
    fn each_verb_asks_for_its_own_variables() {
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]).unwrap(), Call::Version);
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]).unwrap(), Call::Status);
        assert_eq!(parse(&[("CNI_COMMAND", "GC")]).unwrap(), Call::Gc);
        let id = AttachmentId { container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
        // DEL comes without a namespace, and with arguments that are not needed any more.
        let del =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "x")];
        assert_eq!(parse(&del).unwrap(), Call::Del(id));
        let add =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n")];
        assert!(matches!(parse(&add).unwrap(), Call::Add(Sandbox { pod: None, .. })));
        for missing in 0..4 {
            let some: Vec<_> = add
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != missing)
                .map(|(_, pair)| *pair)
                .collect();
            let text = parse(&some).unwrap_err().to_string();
            assert_eq!(text, format!("{} is not set; the runtime sets it for this verb", add[missing].0));
        }
    }

    #[test]
    fn names_that_cannot_be_file_names_are_refused() {
        for bad in ["-x", ".x", "a/b", "a b", "é", "../x", "a\n"] {
            assert!(check_container_id(bad).is_err(), "{bad}");
        }
        assert!(check_container_id("0aZ_.-").is_ok());
        for bad in ["a/b", "a:b", "a b", "a\tb", ".", "..", "0123456789abcdef"] {
            assert!(check_ifname(bad).is_err(), "{bad}");
        }
        assert!(check_ifname("net1.100").is_ok());
    }

    #[test]
    fn arguments_name_the_pod_or_none() {
        assert_eq!(pod_of(""), Ok(None));
        assert_eq!(pod_of("IgnoreUnknown=1;A=b;C=d=e"), Ok(None));
        assert_eq!(pod_of("K8S_POD_NAME=web"), Ok(None));
        assert_eq!(pod_of("K8S_POD_NAMESPACE=;K8S_POD_NAME=web"), Ok(None));
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=1-a";
        let expected =
            PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: Some("1-a".to_owned()) };
        assert_eq!(pod_of(args), Ok(Some(expected)));
    }

    #[test]
    fn malformed_arguments_are_named() {
        for (bad, part) in [
            ("K8S_POD_NAME", "K8S_POD_NAME"),
            ("a=b", "IgnoreUnknown"),
            ("K8S_POD_NAME=a;;", "key=value"),
            ("IgnoreUnknown=perhaps", "perhaps"),
            ("K8S_POD_UID=../../etc", "../../etc"),
        ] {
            let text = pod_of(bad).unwrap_err();
            assert!(text.starts_with("CNI_ARGS ") && text.contains(part), "{bad}: {text}");
        }
    }
}
