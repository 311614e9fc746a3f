//! What is written for later or for another process, and read by code that may be of another version:
//! records, the agent's protocol, the trace's block of bytes.

use std::time::Duration;

use redirect_common::{Protocol, TraceRecord};
use redirect_user::attach::record::Attachment;
use redirect_user::enrol::ask_agent;
use redirect_user::enrol::protocol::{self, Question, Response};
use redirect_user::enrol::source::AgentRequest;
use redirect_user::explain;
use redirect_user::ids::PodRef;
use redirect_user::printable::printable;

use crate::outcome::{Outcome, assert_is_one_line};

/// The record of an attachment: what can be read can be written, is the same then, and can be explained.
pub(crate) fn record(data: &[u8]) -> Outcome {
    let Ok(record) = serde_json::from_slice::<Attachment>(data) else { return Outcome::Refused };
    let text = serde_json::to_vec(&record).expect("a record can be written");
    let again: Attachment = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(again, record);
    assert!(text.len() <= 2_000 + 12 * data.len(), "{} bytes from {}", text.len(), data.len());
    for dst in ["192.0.2.10:80", "127.0.0.1:53", "[fd00::1]:443"] {
        let dst = dst.parse().expect("an address");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let question = explain::Question { protocol, dst, src: None, uid: 0, gid: 0 };
            let said = explain::outbound(&record, &question);
            assert!(!said.verdict.is_empty() && !said.cause.is_empty(), "{said:?}");
        }
    }
    assert!(!explain::inbound(&record, 80, Some(2)).verdict.is_empty());
    Outcome::Read
}

/// A line of the agent's protocol, as a question and as an answer.
pub(crate) fn agent_protocol(data: &[u8]) -> Outcome {
    let question = serde_json::from_slice::<Question>(data).ok();
    if let Some(question) = &question {
        let line = one_line(protocol::line(question));
        assert_eq!(serde_json::from_slice::<Question>(&line).expect("it can be read"), *question);
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        let line = one_line(protocol::line(&response));
        assert_eq!(serde_json::from_slice::<Response>(&line).expect("it can be read"), response);
    }
    let pod = PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: None };
    let asked = AgentRequest { pod, socket: "/run/agent.sock".into(), waited: Duration::from_secs(1) };
    match ask_agent::understand(asked, data) {
        Ok(details) => {
            assert!(!details.containers.is_empty(), "a pod without containers has no sidecar");
            Outcome::Read
        }
        Err(error) => {
            let text = printable(&error.to_string());
            assert_is_one_line(&text, 4_000);
            assert!(text.contains("shop/web-0") && text.contains("/run/agent.sock"), "{text}");
            if question.is_some() { Outcome::Read } else { Outcome::Refused }
        }
    }
}

fn one_line(mut line: Vec<u8>) -> Vec<u8> {
    assert_eq!(line.pop(), Some(b'\n'));
    assert!(!line.contains(&b'\n'), "a line has one end");
    line
}

/// What aya-log says of the trace's block: a record that is written with the same digits, or nothing.
pub(crate) fn trace_block(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Strange };
    let Some(record) = TraceRecord::from_hex(text) else { return Outcome::Refused };
    let numbers = [record.pid, record.uid, record.gid, record.kind, record.verdict, record.rule];
    let endpoint = |end: redirect_common::Endpoint| end.ip.words.into_iter().chain([end.port]);
    let words = numbers.into_iter().chain(endpoint(record.src)).chain(endpoint(record.dst));
    let bytes = record.cookie.to_ne_bytes().into_iter().chain(words.flat_map(u32::to_ne_bytes));
    let again: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(again, text.to_ascii_lowercase());
    Outcome::Read
}
