//! A watch: what happened since a version, as lines of JSON, with bookmarks, until its time is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::select::Selector;
use super::shared::Shared;
use super::store::{Change, Kind, Refused};

struct Watching {
    shared: Arc<Shared>,
    kind: Kind,
    namespace: Option<String>,
    selector: Selector,
    version: u64,
    end: Instant,
    bookmarks: bool,
    /// What is told before anything else.
    first: Vec<u8>,
    over: bool,
}

/// The answer to a watch.
pub(crate) fn respond(
    shared: Arc<Shared>,
    kind: Kind,
    namespace: Option<String>,
    selector: Selector,
    query: &HashMap<String, String>,
) -> Response {
    let number = |key: &str| query.get(key).and_then(|value| value.parse::<u64>().ok());
    let mut version = number("resourceVersion").unwrap_or(0);
    let mut first = Vec::new();
    if version == 0 {
        version = shared.store.version();
        for object in shared.store.list(kind, namespace.as_deref()) {
            if selector.selects(&object) {
                first.extend(line("ADDED", &object));
            }
        }
    }
    let watching = Watching {
        end: Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(1800)),
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|value| value == "true"),
        over: false,
        shared,
        kind,
        namespace,
        selector,
        version,
        first,
    };
    let lines = futures_util::stream::unfold(watching, |mut watching| async {
        let next = watching.next().await?;
        Some((Ok::<_, std::io::Error>(next), watching))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

impl Watching {
    /// The next lines; none when the watch is over.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut versions = self.shared.store.versions();
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        loop {
            if self.over || self.shared.closing.load(Ordering::SeqCst) || Instant::now() >= self.end {
                return None;
            }
            versions.mark_unchanged();
            let Some(changes) = self.shared.store.since(self.version) else {
                self.over = true;
                let gone = Refused(410, "Expired", format!("too old resource version: {}", self.version));
                return Some(line("ERROR", &gone.object()));
            };
            let mut lines = Vec::new();
            for change in changes {
                self.version = change.version;
                lines.extend(self.told(&change));
            }
            if !lines.is_empty() {
                return Some(lines);
            }
            let pause = self.end.min(Instant::now() + self.shared.bookmarks);
            if timeout_at(pause, versions.changed()).await.is_err() && self.bookmarks {
                return Some(self.bookmark());
            }
        }
    }

    /// What a client with this selector is told of a change.
    fn told(&self, change: &Change) -> Vec<u8> {
        let here = |object: &&Value| {
            change.kind == self.kind
                && self.namespace.as_deref().is_none_or(|name| object["metadata"]["namespace"] == name)
                && self.selector.selects(object)
        };
        let before = change.before.as_ref().filter(here);
        match (before, change.after.as_ref().filter(here)) {
            (None, None) => Vec::new(),
            (None, Some(object)) => line("ADDED", object),
            (Some(_), Some(object)) => line("MODIFIED", object),
            (Some(object), None) => line("DELETED", object),
        }
    }

    fn bookmark(&self) -> Vec<u8> {
        let version = self.version.to_string();
        line(
            "BOOKMARK",
            &json!({ "apiVersion": self.kind.api_version(), "kind": self.kind.kind,
                     "metadata": { "resourceVersion": version, "creationTimestamp": null },
                     "spec": { "containers": null } }),
        )
    }
}

fn line(what: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({ "type": what, "object": object }).to_string().into_bytes();
    line.push(b'\n');
    line
}
