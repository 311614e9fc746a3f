//! From the environment and stdin to one verb.

use std::io::{IsTerminal as _, Read as _};

use crate::conf::{Conf, Version};
use crate::error::Error;
use crate::request::Request;
use crate::{add, check, del, gc, log, reply, status};

/// The longest configuration that is read. A runtime's is a few kilobytes, with annotations a few hundred at
/// most.
const STDIN_MAX: u64 = 16 << 20;

/// Runs the verb that the environment names; the text is what goes to stdout.
pub(crate) fn run() -> Result<String, Error> {
    let request = Request::parse(|name| std::env::var_os(name))?;
    if request == Request::Version {
        return Ok(versions());
    }
    let text = stdin()?;
    let conf =
        if matches!(request, Request::Del(_)) { Conf::read_for_del(&text)? } else { Conf::read(&text)? };
    reply::speak(conf.version);
    check_verb(&request, conf.version)?;
    let log = conf.log();
    log::start(log.level, log.file.as_deref());
    let _span = span(&request).entered();
    for problem in &log.problems {
        tracing::warn!("{problem}");
    }
    let outcome = dispatch(&request, &conf);
    if let Err(error) = &outcome {
        tracing::error!(code = error.code().0, "{error}");
    }
    outcome
}

fn dispatch(request: &Request, conf: &Conf) -> Result<String, Error> {
    match request {
        Request::Add(sandbox) => add::run(sandbox, conf),
        Request::Del(id) => del::run(id, conf),
        Request::Check(sandbox) => check::run(sandbox, conf),
        Request::Gc => gc::run(conf),
        Request::Status => status::run(conf),
        Request::Version => Ok(versions()),
    }
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn check_verb(request: &Request, found: Version) -> Result<(), Error> {
    let since = match request {
        Request::Check(_) => Version::V0_4_0,
        Request::Gc | Request::Status => Version::V1_1_0,
        Request::Add(_) | Request::Del(_) | Request::Version => return Ok(()),
    };
    if found >= since {
        return Ok(());
    }
    Err(Error::Verb { verb: request.verb(), since: since.name(), found })
}

/// A runtime asks before it knows which versions it may speak, so whatever is on stdin gets an answer: in the
/// version that is named there, or else in the newest. Nobody is made to type one.
fn versions() -> String {
    let named = (!std::io::stdin().is_terminal()).then(stdin).and_then(|text| Conf::read(&text.ok()?).ok());
    let version = named.map_or(Version::NEWEST, |conf| conf.version);
    let supported = Version::NAMES.map(|name| format!("{name:?}")).join(",");
    format!(r#"{{"cniVersion":"{}","supportedVersions":[{supported}]}}"#, version.name())
}

fn stdin() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    std::io::stdin()
        .take(STDIN_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|source| Error::Io { what: "read the network configuration from stdin", source })?;
    if text.len() as u64 > STDIN_MAX {
        let what = "the network configuration on stdin".to_owned();
        return Err(Error::Decode { what, problem: format!("it is longer than {STDIN_MAX} bytes") });
    }
    Ok(text)
}

fn span(request: &Request) -> tracing::Span {
    let verb = request.verb();
    match request {
        Request::Add(sandbox) | Request::Check(sandbox) => {
            let pod = sandbox.pod.as_ref().map(tracing::field::display);
            tracing::info_span!(
                "call",
                verb,
                container = sandbox.id.container_id,
                ifname = sandbox.id.ifname,
                pod
            )
        }
        Request::Del(id) => {
            tracing::info_span!("call", verb, container = id.container_id, ifname = id.ifname)
        }
        Request::Gc | Request::Status | Request::Version => tracing::info_span!("call", verb),
    }
}
