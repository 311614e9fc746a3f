//! Pods from JSON manifests: a file, or a folder of `*.json` files, each a Pod or a list of Pods as `kubectl
//! get -o json` prints them.
//!
//! The folder is read again for every question, so that a manifest can be put there at any time. Tests and
//! nodes without an API server (static pods) use it; a cluster watch answers through the same [`PodStore`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use redirect_user::enrol::source::PodDetails;
use redirect_user::ids::PodRef;
use serde::Deserialize;
use serde::de::Error as _;

use crate::pod::Pod;
use crate::server::{PodStore, StoreError};

/// How often the folder is read while the pod is not there.
const POLL: Duration = Duration::from_millis(100);

/// The store.
#[derive(Clone, Debug)]
pub struct Manifests {
    path: PathBuf,
}

impl Manifests {
    /// A store that reads `path`, a file or a folder.
    pub fn new(path: impl Into<PathBuf>) -> Manifests {
        Manifests { path: path.into() }
    }

    /// Looks once. A manifest that cannot be read does not hide the others, but is an error where the pod is
    /// not among those: it may be the one.
    pub fn look(&self, wanted: &PodRef) -> Result<Option<PodDetails>, StoreError> {
        let mut first_error = None;
        for file in self.files()? {
            match read(&file) {
                Ok(pods) => {
                    if let Some(pod) = pods.into_iter().find(|pod| pod.is(wanted)) {
                        return Ok(Some(pod.details()));
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    fn files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let failed = |source| StoreError::Read { path: self.path.clone(), source };
        if !std::fs::metadata(&self.path).map_err(failed)?.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let entries = std::fs::read_dir(&self.path).map_err(failed)?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        Ok(files)
    }
}

impl PodStore for Manifests {
    async fn find(&self, pod: &PodRef, wait: Duration) -> Result<Option<PodDetails>, StoreError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let found = self.look(pod);
            if matches!(found, Ok(Some(_))) || tokio::time::Instant::now() + POLL > deadline {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn read(file: &Path) -> Result<Vec<Pod>, StoreError> {
    let bytes = std::fs::read(file).map_err(|source| StoreError::Read { path: file.to_owned(), source })?;
    pods(&bytes).map_err(|source| StoreError::Parse { path: file.to_owned(), source })
}

/// The pods of a document. Which of the two shapes it has is told by `items`, so that an error in either is
/// reported with its own line and column.
fn pods(document: &[u8]) -> Result<Vec<Pod>, serde_json::Error> {
    let shape: Shape = serde_json::from_slice(document)?;
    let pods = match shape.items {
        Some(_) => serde_json::from_slice::<List>(document)?.items,
        None => vec![serde_json::from_slice::<Pod>(document)?],
    };
    match pods.iter().all(|pod| pod.metadata.name.is_some()) {
        true => Ok(pods),
        false => Err(serde_json::Error::custom("a pod has no metadata.name")),
    }
}

#[derive(Deserialize)]
struct Shape {
    items: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Pod>,
}

#[cfg(test)]
mod tests {
    use redirect_user::enrol::source::ContainerKind;

    use super::*;

    const POD: &str = r#"{
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "11", "labels": {"app": "web"},
                     "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {
            "initContainers": [
                {"name": "istio-validation", "image": "x"},
                {"name": "istio-proxy", "restartPolicy": "Always", "args": ["proxy", "sidecar"],
                 "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "SECRET", "value": "x"},
                         {"name": "DISABLE_ENVOY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                 "securityContext": {"runAsUser": 2000, "runAsGroup": 2001}}],
            "containers": [{"name": "web", "image": "y"}]}}"#;

    fn pod(namespace: &str, name: &str, uid: Option<&str>) -> PodRef {
        PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.map(str::to_owned) }
    }

    fn folder(files: &[(&str, &str)]) -> (Manifests, PathBuf) {
        let id = format!("redirect-manifests-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(id);
        std::fs::create_dir_all(&path).unwrap();
        for (name, text) in files {
            std::fs::write(path.join(name), text).unwrap();
        }
        (Manifests::new(&path), path)
    }

    #[test]
    fn a_manifest_becomes_the_details_that_decide_and_no_more() {
        let (store, path) = folder(&[("web.json", POD), ("notes.txt", "not a manifest")]);
        let details = store.look(&pod("shop", "web-0", Some("11"))).unwrap().unwrap();
        std::fs::remove_dir_all(path).unwrap();
        let kinds: Vec<_> = details.containers.iter().map(|c| (c.name.as_str(), c.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("istio-validation", ContainerKind::Init),
                ("istio-proxy", ContainerKind::Sidecar),
                ("web", ContainerKind::Regular)
            ]
        );
        let proxy = &details.containers[1];
        assert_eq!((proxy.run_as_user, proxy.run_as_group), (Some(2000), Some(2001)));
        let env: Vec<_> = proxy.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(env, [("DISABLE_ENVOY", ""), ("ISTIO_META_DNS_CAPTURE", "true")]);
        assert_eq!((details.labels["app"].as_str(), details.uid.as_deref()), ("web", Some("11")));
    }

    #[test]
    fn a_pod_is_found_by_name_and_uid_also_in_lists_and_by_a_static_pods_hash() {
        let list = format!(
            r#"{{"kind": "List", "items": [{POD}, {{"metadata": {{"name": "old"}}, "spec": {{}}}},
                {{"metadata": {{"name": "etcd", "namespace": "kube-system", "uid": "api",
                  "annotations": {{"kubernetes.io/config.hash": "abc"}}}}, "spec": {{"hostNetwork": true}}}}]}}"#
        );
        let (store, path) = folder(&[("all.json", &list)]);
        let found = |pod: &PodRef| store.look(pod).unwrap();
        assert!(found(&pod("shop", "web-0", None)).is_some());
        assert!(found(&pod("shop", "web-0", Some("12"))).is_none(), "another uid is another pod");
        assert!(found(&pod("other", "web-0", None)).is_none());
        assert!(found(&pod("default", "old", Some("any"))).is_some(), "a manifest without a uid is any pod");
        let etcd = found(&pod("kube-system", "etcd", Some("abc"))).unwrap();
        assert!(etcd.host_network && etcd.uid.as_deref() == Some("abc"));
        assert!(found(&pod("kube-system", "etcd", Some("api"))).is_some());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_broken_manifest_is_an_error_only_where_it_may_hide_the_pod() {
        let (store, path) = folder(&[("a-broken.json", "{"), ("web.json", POD)]);
        assert!(store.look(&pod("shop", "web-0", None)).unwrap().is_some());
        let text = store.look(&pod("shop", "web-1", None)).unwrap_err().to_string();
        assert!(text.contains("a-broken.json"), "{text}");
        std::fs::remove_dir_all(&path).unwrap();
        let text = store.look(&pod("shop", "web-0", None)).unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}
