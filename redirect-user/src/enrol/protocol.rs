//! The words between the plugin and the node's agent.
//!
//! A Unix stream socket, one exchange per connection. The plugin sends one line of JSON and the agent answers
//! with one line of JSON; both lines end with a line feed, and nothing follows.
//!
//! ```text
//! -> {"version":1,"namespace":"shop","name":"web-0","uid":"5a1f...","waitMs":29000}
//! <- {"version":1,"pod":{"uid":"5a1f...","hostNetwork":false,"labels":{},"annotations":{...},"containers":[
//!      {"name":"istio-proxy","kind":"sidecar","args":["proxy","sidecar"],"env":{},"runAsUser":1337,"runAsGroup":1337},
//!      {"name":"web","kind":"regular","args":[],"env":{}}],"partial":false}}
//! <- {"version":1,"error":{"kind":"notFound","message":"no pod shop/web-0 on this node after 29.0 s"}}
//! ```
//!
//! `uid` may be absent; where it is given, a pod of the same name with another uid is not the pod. `waitMs`
//! is how long the agent may wait for the pod to appear, because a kubelet can be ahead of the agent's watch.
//! `kind` of an error is `notFound` (ask again later), `failed` (the agent cannot look) or `badRequest`. A
//! line is at most [`MAX_LINE`] bytes. A reader ignores fields that it does not know; a change that a reader
//! must not ignore gets a new version, and the agent answers a version that it does not speak with
//! `badRequest`.

use serde::{Deserialize, Serialize};

use super::source::PodDetails;
use crate::ids::PodRef;

/// The version spoken here.
pub const VERSION: u32 = 1;
/// The name of the socket for log lines, in the folder of the one for questions: one line per datagram, as
/// the plugin writes it to stderr, and no answer.
pub const LOG_SOCKET: &str = "log.sock";
/// The longest line in bytes, line feed included. The API server stores at most 1.5 MiB per object.
pub const MAX_LINE: u64 = 2 << 20;

/// What the plugin sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// Which pod.
    #[serde(flatten)]
    pub pod: PodRef,
    /// How long the agent may wait for the pod to appear, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// [`VERSION`].
    pub version: u32,
    /// The pod or an error.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The pod or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The pod.
    Pod(PodDetails),
    /// Why there is none.
    Error(Problem),
}

/// Why there is no pod in the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What sort of failure.
    pub kind: ProblemKind,
    /// The agent's words, which end up in the pod's events.
    pub message: String,
}

/// The sorts of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemKind {
    /// The agent does not know the pod.
    NotFound,
    /// The agent cannot look.
    Failed,
    /// The agent does not understand the request.
    BadRequest,
}

/// A message as the line that is sent.
#[must_use]
pub fn line(message: &impl Serialize) -> Vec<u8> {
    // Maps with string keys and plain structs only: nothing here can fail to become JSON.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::source::{Container, ContainerKind};

    #[test]
    fn the_words_are_as_documented() {
        let pod =
            PodRef { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: Some("5a1f".to_owned()) };
        let request = Question { version: 1, pod, wait_ms: 29_000 };
        let text = r#"{"version":1,"namespace":"shop","name":"web-0","uid":"5a1f","waitMs":29000}"#;
        assert_eq!(line(&request), format!("{text}\n").into_bytes());
        assert_eq!(serde_json::from_str::<Question>(text).unwrap(), request);

        let container = Container {
            name: "istio-proxy".to_owned(),
            kind: ContainerKind::Sidecar,
            run_as_user: Some(1337),
            ..Container::default()
        };
        let pod = PodDetails { containers: vec![container], ..PodDetails::default() };
        let response = Response { version: 1, answer: Answer::Pod(pod) };
        let text = concat!(
            r#"{"version":1,"pod":{"hostNetwork":false,"labels":{},"annotations":{},"containers":["#,
            r#"{"name":"istio-proxy","kind":"sidecar","args":[],"env":{},"runAsUser":1337}],"partial":false}}"#
        );
        assert_eq!(line(&response), format!("{text}\n").into_bytes());
        assert_eq!(serde_json::from_str::<Response>(text).unwrap(), response);
    }

    #[test]
    fn unknown_fields_are_ignored_and_an_empty_answer_is_none() {
        let text = r#"{"version":1,"error":{"kind":"notFound","message":"m","x":1},"later":true}"#;
        let problem = Problem { kind: ProblemKind::NotFound, message: "m".to_owned() };
        assert_eq!(serde_json::from_str::<Response>(text).unwrap().answer, Answer::Error(problem));
        assert!(serde_json::from_str::<Response>(r#"{"version":1}"#).is_err());
    }
}
