//! What `redirect flows` saw: connections, summed up.

use std::collections::BTreeMap;

use serde::Serialize;

/// Connections of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Flow {
    /// The pod that dialled, or for what comes from outside, who.
    pub(crate) from: String,
    /// The pod or address and port that was dialled.
    pub(crate) to: String,
    /// As `redirect trace` says it.
    pub(crate) verdict: &'static str,
    /// The rule that gave it.
    pub(crate) rule: &'static str,
}

impl Flow {
    /// How it is drawn.
    pub(crate) fn class(&self) -> &'static str {
        match self.verdict {
            "to-outbound" | "to-inbound" | "to-dns" => "good",
            "direct" => "plain",
            "would-drop" => "audit",
            _ => "bad",
        }
    }
}

/// What was seen.
pub(crate) struct Seen {
    pub(crate) flows: BTreeMap<Flow, u64>,
    pub(crate) lost: u64,
    pub(crate) seconds: u64,
}

impl Seen {
    /// All connections.
    pub(crate) fn sum(&self) -> u64 {
        self.flows.values().sum()
    }

    /// The flows with most connections first.
    pub(crate) fn busiest(&self) -> Vec<(&Flow, u64)> {
        let mut flows: Vec<_> = self.flows.iter().map(|(flow, count)| (flow, *count)).collect();
        flows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        flows
    }
}
