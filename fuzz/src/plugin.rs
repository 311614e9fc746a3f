//! What a runtime hands to the plugin: environment, configuration, the result of the plugins before it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use redirect_user::ids::PodRef;
use redirect_user::node::names;
use redirect_user::policy::Policy;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::call::{Call, Sandbox};
use crate::conf::Conf;
use crate::error::Error;
use crate::outcome::{Outcome, assert_is_one_line};
use crate::prev::PrevResult;
use crate::reply;

/// The keys of the configuration that DEL goes by.
const KEYS_OF_DEL: [&str; 2] = ["bpffsRoot", "stateDir"];

/// What the plugin gets on its stdin: every key is read, for DEL as well.
pub(crate) fn conf(data: &[u8]) -> Outcome {
    for_del(data);
    let Some(conf) = told(Conf::read(data)) else { return Outcome::Refused };
    told(conf.node());
    told(conf.network());
    told(conf.exclude_namespaces());
    told(conf.pod_source());
    told(conf.cgroup_root());
    told(conf.handed_over_annotations());
    told(conf.cgroup_path());
    told(conf.valid_attachments());
    told(PrevResult::read(&conf));
    if let Some(rules) = told(conf.rules()) {
        let text = serde_json::to_string(&rules.defaults).expect("a policy can be written");
        assert_eq!(serde_json::from_str::<Policy>(&text).expect("it can be read"), rules.defaults);
    }
    let log = conf.log();
    for problem in &log.problems {
        assert_is_one_line(problem, 4_000);
    }
    let _ = (log.level, log.file, log.agent);
    // What is good enough for ADD is good enough for DEL.
    assert!(Conf::read_for_del(data).is_ok_and(|again| again.version == conf.version));
    Outcome::Read
}

/// DEL answers by two keys, as if the others were not there: no mistake in them keeps a pod from going.
fn for_del(data: &[u8]) {
    let Ok(all) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(data) else {
        assert!(Conf::read_for_del(data).is_err(), "what is no object is no configuration");
        return;
    };
    let few: BTreeMap<_, _> = all.iter().filter(|(key, _)| KEYS_OF_DEL.contains(&key.as_str())).collect();
    let few = serde_json::to_vec(&few).expect("an object can be written");
    let node = |text: &[u8]| told(Conf::read_for_del(text).expect("an object").node_for_del());
    let place = |text: &[u8]| node(text).map(|node| (node.bpffs, node.state_dir));
    assert_eq!(place(data), place(&few), "another key counts for DEL");
}

/// `CNI_ARGS` and the other variables, by the first byte.
pub(crate) fn cni_args(data: &[u8]) -> Outcome {
    let Some((first, value)) = data.split_first() else { return Outcome::Strange };
    let names = ["CNI_ARGS", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_COMMAND"];
    let name = names[usize::from(*first) % names.len()];
    // The environment has no NUL.
    let value: Vec<u8> = value.iter().copied().take_while(|byte| *byte != 0).collect();
    if ["CNI_ARGS", "CNI_NETNS"].contains(&name) {
        assert!(call("DEL", name, &value).is_ok(), "{name} counts for DEL");
    }
    match call("ADD", name, &value) {
        Ok(Call::Add(sandbox)) => sane(&sandbox),
        Ok(other) => assert!(name == "CNI_COMMAND" && other.verb().as_bytes() == value),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(name), "{name} is wrong, and not named: {text}");
            told::<()>(Err(error));
            return Outcome::Refused;
        }
    }
    Outcome::Read
}

/// A usual call, but for one variable.
fn call(verb: &str, name: &str, value: &[u8]) -> Result<Call, Error> {
    Call::parse(|asked| {
        let usual = match asked {
            "CNI_COMMAND" => verb,
            "CNI_CONTAINERID" => "c0ffee",
            "CNI_IFNAME" => "eth0",
            "CNI_NETNS" => "/run/netns/x",
            "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
            _ => return None,
        };
        Some(if asked == name { OsString::from_vec(value.to_owned()) } else { usual.into() })
    })
}

/// What was read becomes names of files, and the same pod again.
fn sane(sandbox: &Sandbox) {
    for name in [&sandbox.id.container_id, &sandbox.id.ifname] {
        let file = names::encode(name);
        assert!(!name.is_empty() && !file.contains(['/', '.']), "{name:?}");
        assert_eq!(names::decode(&file).as_ref(), Some(name));
    }
    let Some(PodRef { namespace, name, uid }) = &sandbox.pod else { return };
    let uid = uid.as_deref().unwrap_or_default();
    let args = format!("K8S_POD_UID={uid};K8S_POD_NAME={name};K8S_POD_NAMESPACE={namespace}");
    match call("ADD", "CNI_ARGS", args.as_bytes()) {
        Ok(Call::Add(again)) => assert_eq!(again.pod, sandbox.pod),
        other => panic!("{args:?}: {other:?}"),
    }
}

/// The result of the plugins before ours: passed on byte for byte, or refused.
pub(crate) fn prev_result(data: &[u8]) -> Outcome {
    let Ok(raw) = serde_json::from_slice::<&RawValue>(data) else { return Outcome::Strange };
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"mesh","prevResult":{raw}}}"#);
    let conf = Conf::read(text.as_bytes()).expect("only the result is odd");
    assert!(Conf::read_for_del(text.as_bytes()).is_ok_and(|conf| conf.node_for_del().is_ok()));
    let Some(prev) = told(PrevResult::read(&conf)) else { return Outcome::Refused };
    if raw.get() != "null" {
        assert_eq!(prev.pass_on(), raw.get());
    }
    assert!(prev.addresses.len() <= data.len() / "{\"address\":\"::/0\"}".len());
    Outcome::Read
}

/// The value, or nothing after an error that is one of the table, and whose reply is one short line.
#[track_caller]
fn told<T>(result: Result<T, Error>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let (code, words) = error.code();
    assert!(code != 0 && code != 100 && !words.is_empty(), "{error:?}");
    let reply: Value = serde_json::from_str(&reply::describe(&error)).expect("a reply is JSON");
    assert_eq!(reply["code"], code);
    assert_is_one_line(reply["details"].as_str().expect("details"), 2_700);
    if let Error::Conf { key, .. } = &error {
        let named = redirect_user::printable::printable(key);
        assert!(error.one_line().contains(&named), "{key:?} is not named: {error}");
    }
    None
}
