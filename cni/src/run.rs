//! From the environment and stdin to one verb.

use std::io::{IsTerminal as _, Read as _};

use crate::call::{Call, Sandbox};
use crate::conf::Conf;
use crate::error::Error;
use crate::version::Version;
use crate::{add, check, del, gc, log, reply, status};

/// The longest configuration that is read. A runtime's is a few kilobytes, with annotations a few hundred at
/// most.
const STDIN_MAX: u64 = 16 << 20;

/// Runs the verb that the environment names; the text is what goes to stdout.
pub(crate) fn run() -> Result<String, Error> {
    let call = Call::parse(|name| std::env::var_os(name))?;
    if call == Call::Version {
        return Ok(versions());
    }
    let text = stdin()?;
    let conf = if matches!(call, Call::Del(_)) { Conf::read_for_del(&text)? } else { Conf::read(&text)? };
    reply::speak(conf.version);
    check_verb(&call, conf.version)?;
    let log = conf.log();
    log::start(&log);
    let _span = span(&call).entered();
    for problem in &log.problems {
        tracing::warn!("{problem}");
    }
    let outcome = dispatch(&call, &conf).map_err(Error::explained);
    if let Err(error) = &outcome {
        tracing::error!(code = error.code().0, "{}", in_span(&call, error));
    }
    outcome
}

/// The error for a line that names the pod already.
fn in_span(call: &Call, error: &Error) -> String {
    let text = error.one_line();
    match call {
        Call::Add(Sandbox { pod: Some(pod), .. }) | Call::Check(Sandbox { pod: Some(pod), .. }) => {
            text.replace(&format!("pod {pod}"), "the pod")
        }
        _ => text,
    }
}

/// Each verb gets the node that the configuration names: where pins and records are.
fn dispatch(call: &Call, conf: &Conf) -> Result<String, Error> {
    let node = if matches!(call, Call::Del(_)) { conf.node_for_del()? } else { conf.node()? };
    match call {
        Call::Add(sandbox) => add::run(sandbox, conf, &node),
        Call::Del(id) => del::run(id, &node),
        Call::Check(sandbox) => check::run(sandbox, conf, &node),
        Call::Gc => gc::run(conf, &node),
        Call::Status => status::run(conf, &node),
        Call::Version => Ok(versions()),
    }
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn check_verb(call: &Call, found: Version) -> Result<(), Error> {
    let since = match call {
        Call::Check(_) => Version::V0_4_0,
        Call::Gc | Call::Status => Version::V1_1_0,
        Call::Add(_) | Call::Del(_) | Call::Version => return Ok(()),
    };
    if found >= since {
        return Ok(());
    }
    Err(Error::Verb { verb: call.verb(), since: since.name(), found })
}

/// A runtime asks before it knows which versions it may speak, so all that may be on stdin gets an answer: in
/// the version that is named there, or else in the newest. A terminal is not waited for.
fn versions() -> String {
    let named = (!std::io::stdin().is_terminal()).then(stdin).and_then(|text| Conf::read(&text.ok()?).ok());
    let version = named.map_or(Version::NEWEST, |conf| conf.version);
    let supported = Version::NAMES.map(|name| format!("{name:?}")).join(",");
    format!(r#"{{"cniVersion":"{}","supportedVersions":[{supported}]}}"#, version.name())
}

fn stdin() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    std::io::stdin().take(STDIN_MAX + 1).read_to_end(&mut text).map_err(|source| Error::Io {
        what: "read the network configuration, which the runtime hands over on stdin",
        source,
    })?;
    if text.len() as u64 > STDIN_MAX {
        let what = "the network configuration on stdin".to_owned();
        return Err(Error::Decode { what, problem: format!("it is longer than {STDIN_MAX} bytes") });
    }
    Ok(text)
}

fn span(call: &Call) -> tracing::Span {
    let verb = call.verb();
    match call {
        Call::Add(sandbox) | Call::Check(sandbox) => {
            let pod = sandbox.pod.as_ref().map(tracing::field::display);
            tracing::info_span!(
                "call",
                verb,
                container = sandbox.id.container_id,
                ifname = sandbox.id.ifname,
                pod
            )
        }
        Call::Del(id) => {
            tracing::info_span!("call", verb, container = id.container_id, ifname = id.ifname)
        }
        Call::Gc | Call::Status | Call::Version => tracing::info_span!("call", verb),
    }
}
