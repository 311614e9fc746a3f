//! Events on pods: what was done about one, in words for its owner.

use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::pod::Pod;

/// Who says so.
const REPORTER: &str = "redirect-cni";
/// The longest note that the API takes, in bytes.
const NOTE_MAX: usize = 1000;

/// An event's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: EventType,
    reason: &'static str,
    note: std::borrow::Cow<'static, str>,
}

const fn message(kind: EventType, reason: &'static str, note: &'static str) -> Message {
    Message { kind, reason, note: std::borrow::Cow::Borrowed(note) }
}

/// A broken pod was repaired.
pub const REPAIRED: Message = message(
    EventType::Normal,
    "RepairBrokenPod",
    "The pod was not redirected into its sidecar; it is now. Connections from before go on as they were.",
);
/// The same, and connections that went around the sidecar are ended; their number follows.
pub const REPAIRED_RESET: Message = message(
    EventType::Normal,
    "RepairBrokenPod",
    "The pod was not redirected into its sidecar; it is now. Connections from before that went around the sidecar \
     were reset",
);
/// The same, where they could not be ended; the reason follows.
pub const REPAIRED_NO_RESET: Message = message(
    EventType::Warning,
    "RepairBrokenPod",
    "The pod was not redirected into its sidecar; it is now. Connections from before go on, as they could not be reset",
);
/// A broken pod could not be repaired.
pub const REPAIR_FAILED: Message = message(
    EventType::Warning,
    "RepairFailed",
    "The pod is not redirected into its sidecar, and that could not be changed while it runs",
);
/// A broken pod was deleted; Istio's reason.
pub const DELETED: Message = message(
    EventType::Warning,
    "DeleteBrokenPod",
    "The pod was deleted because it was not redirected into its sidecar.",
);
/// A broken pod was labelled; Istio's reason.
pub const LABELLED: Message = message(
    EventType::Warning,
    "LabelBrokenPod",
    "The pod is not redirected into its sidecar and was labelled for it.",
);
/// The policy of a running pod was changed.
pub const POLICY_CHANGED: Message = message(
    EventType::Normal,
    "PolicyChanged",
    "New connections of the pod follow its changed traffic annotations.",
);
/// The policy of a running pod could not be changed.
pub const POLICY_FAILED: Message = message(
    EventType::Warning,
    "PolicyNotChanged",
    "The pod's traffic annotations were changed, and the policy could not follow",
);
/// The annotations make no sense.
pub const INVALID: Message =
    message(EventType::Warning, "InvalidAnnotation", "The pod's traffic annotations cannot be used");
/// The pod brings iptables along.
pub const ISTIO_INIT: Message = message(
    EventType::Warning,
    "NotRedirected",
    "The pod has the init container istio-init, which programs iptables by itself, so redirect-cni leaves the pod \
     alone. Set pilot.cni.enabled=true in Istio and restart the workload.",
);

impl Message {
    /// The message with a cause behind it.
    #[must_use]
    pub fn with(mut self, cause: &str) -> Message {
        let mut note = format!("{}: {cause}", self.note);
        if note.len() > NOTE_MAX {
            let end = (0..=NOTE_MAX).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
            note.truncate(end);
        }
        self.note = note.into();
        self
    }
}

/// The way to tell.
#[derive(Debug)]
pub struct Events {
    node: String,
}

impl Events {
    /// Events that this node's agent reports.
    #[must_use]
    pub fn new(node: &str) -> Events {
        Events { node: node.to_owned() }
    }

    /// Tells; where that fails, the log has it all the same.
    pub async fn publish(&self, client: Client, pod: &Pod, message: Message) {
        let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(self.node.clone()) };
        let event = Event {
            type_: message.kind,
            reason: message.reason.to_owned(),
            note: Some(message.note.into_owned()),
            action: message.reason.to_owned(),
            secondary: None,
        };
        let recorder = Recorder::new(client, reporter);
        if let Err(error) = recorder.publish(&event, &pod.object_ref(&())).await {
            tracing::warn!(pod = %pod.reference(), reason = event.reason, %error, "cannot make an event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_cause_is_cut_to_what_the_api_takes() {
        let message = REPAIR_FAILED.with(&"ä".repeat(2000));
        assert!(message.note.len() <= NOTE_MAX && message.note.starts_with("The pod is not"));
    }
}
