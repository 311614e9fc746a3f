//! The objects: each write gets the next resource version, and the history is what watches are served from.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// A kind of object: the group and version it is served at, its name in URLs, and its name in objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    /// For example `v1`.
    pub version: &'static str,
    /// For example `pods`.
    pub plural: &'static str,
    /// For example `Pod`.
    pub kind: &'static str,
    /// Its objects have a namespace.
    pub namespaced: bool,
}

impl Kind {
    /// Pods.
    pub const PODS: Kind = Kind { group: "", version: "v1", plural: "pods", kind: "Pod", namespaced: true };
    /// Events; `events.k8s.io` shows the same ones.
    pub const EVENTS: Kind =
        Kind { group: "", version: "v1", plural: "events", kind: "Event", namespaced: true };
    /// Nodes.
    pub const NODES: Kind =
        Kind { group: "", version: "v1", plural: "nodes", kind: "Node", namespaced: false };
    /// Namespaces.
    pub const NAMESPACES: Kind =
        Kind { group: "", version: "v1", plural: "namespaces", kind: "Namespace", namespaced: false };
    /// Networks of Multus.
    pub const NETWORKS: Kind = Kind {
        group: "k8s.cni.cncf.io",
        version: "v1",
        plural: "network-attachment-definitions",
        kind: "NetworkAttachmentDefinition",
        namespaced: true,
    };
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::PODS, Kind::EVENTS, Kind::NODES, Kind::NAMESPACES, Kind::NETWORKS];

    /// `v1` or `group/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Why a write was refused: the HTTP status, the reason and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub u16, pub &'static str, pub String);

impl Refused {
    /// The object that tells a client.
    pub(crate) fn object(&self) -> Value {
        let Refused(code, reason, message) = self;
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code })
    }
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: Kind,
    /// The object before; none where it was made.
    pub(crate) before: Option<Value>,
    /// The object now; none where it was removed.
    pub(crate) after: Option<Value>,
}

/// The objects of a cluster.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    objects: BTreeMap<(Kind, String, String), Value>,
    history: Vec<Change>,
    version: u64,
    /// Versions up to this one are gone.
    compacted: u64,
}

impl Default for Store {
    fn default() -> Store {
        let inner = Inner { objects: BTreeMap::new(), history: Vec::new(), version: 100, compacted: 0 };
        let store = Store { inner: inner.into(), version: watch::Sender::new(100) };
        for namespace in ["default", "kube-system", "istio-system", "shop"] {
            store.put(Kind::NAMESPACES, json!({ "metadata": { "name": namespace } }));
        }
        store
    }
}

impl Store {
    /// Creates or replaces an object and returns it as it is stored.
    pub fn put(&self, kind: Kind, object: Value) -> Value {
        let key = key(kind, &object);
        let before = self.lock().objects.get(&key).cloned();
        self.write(kind, before, Some(object)).expect("an object has a new version")
    }

    /// Creates an object.
    ///
    /// # Errors
    /// It is there already.
    pub fn create(&self, kind: Kind, object: Value) -> Result<Value, Refused> {
        let key = key(kind, &object);
        if self.lock().objects.contains_key(&key) {
            return Err(Refused(409, "AlreadyExists", format!("{} {:?} already exists", kind.plural, key.2)));
        }
        Ok(self.write(kind, None, Some(object)).expect("an object has a new version"))
    }

    /// Changes an object; fine when it is gone.
    pub fn change(&self, kind: Kind, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        if let Some(before) = self.get(kind, namespace, name) {
            let mut after = before.clone();
            change(&mut after);
            self.write(kind, Some(before), Some(after));
        }
    }

    /// Removes an object; fine when it is gone.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        let before = self.get(kind, namespace, name)?;
        self.write(kind, Some(before.clone()), None);
        Some(before)
    }

    /// An object.
    #[must_use]
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a kind, in one namespace or in all.
    #[must_use]
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
        let inner = self.lock();
        let here = |key: &(Kind, String, String)| key.0 == kind && namespace.is_none_or(|name| name == key.1);
        inner.objects.iter().filter(|(key, _)| here(key)).map(|(_, object)| object.clone()).collect()
    }

    /// Forgets the history: whoever asks for a version before now is told that it is gone.
    pub fn compact(&self) {
        let mut inner = self.lock();
        // An event that clients do not ask for separates what they have seen from what is still there.
        inner.version += 1;
        inner.compacted = inner.version;
        inner.history.clear();
    }

    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn wake(&self) {
        self.version.send_modify(|_| ());
    }

    /// What happened after a version; `None` when that is no longer known.
    pub(crate) fn since(&self, version: u64) -> Option<Vec<Change>> {
        let inner = self.lock();
        (version >= inner.compacted)
            .then(|| inner.history.iter().filter(|change| change.version > version).cloned().collect())
    }

    fn write(&self, kind: Kind, before: Option<Value>, after: Option<Value>) -> Option<Value> {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let after = after.map(|object| complete(kind, object, before.as_ref(), version));
        let key = key(kind, after.as_ref().or(before.as_ref())?);
        match &after {
            Some(object) => inner.objects.insert(key, object.clone()),
            None => inner.objects.remove(&key),
        };
        // A removal is shown with the object as it was last, at the version of the removal.
        let before = before.map(|mut object| {
            if after.is_none() {
                object["metadata"]["resourceVersion"] = json!(version.to_string());
            }
            object
        });
        inner.history.push(Change { version, kind, before, after: after.clone() });
        if inner.history.len() > 2000 {
            inner.compacted = inner.history.remove(0).version;
        }
        drop(inner);
        self.version.send_replace(version);
        after
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Merges a patch as RFC 7386 says.
pub(crate) fn merge(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                object.as_object_mut().expect("made above").remove(&key);
            }
            value => merge(&mut object[&key], value),
        }
    }
}

/// What the server adds to an object.
fn complete(kind: Kind, mut object: Value, before: Option<&Value>, version: u64) -> Value {
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    let kept = |key: &str| before.map(|before| before["metadata"][key].clone()).filter(|v| !v.is_null());
    let metadata = &mut object["metadata"];
    if metadata["uid"].is_null() {
        let uid = || json!(format!("00000000-0000-4000-8000-{version:012x}"));
        metadata["uid"] = kept("uid").unwrap_or_else(uid);
    }
    if metadata["creationTimestamp"].is_null() {
        metadata["creationTimestamp"] =
            kept("creationTimestamp").unwrap_or_else(|| json!("2026-01-01T00:00:00Z"));
    }
    if kind.namespaced && metadata["namespace"].is_null() {
        metadata["namespace"] = json!("default");
    }
    metadata["resourceVersion"] = json!(version.to_string());
    object
}

fn key(kind: Kind, object: &Value) -> (Kind, String, String) {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(if kind.namespaced { "default" } else { "" });
    let namespace = if kind.namespaced { namespace } else { "" };
    (kind, namespace.to_owned(), metadata["name"].as_str().unwrap_or_default().to_owned())
}
