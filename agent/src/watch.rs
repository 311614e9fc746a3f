//! This node's pods, from a watch on the API server.
//!
//! The watch survives what happens to watches: 410 Gone (everything is listed again), connections that end or
//! die silently, throttling, tokens that expire, a server that is away for minutes. While it is away the pods
//! that are known stay known. A pod that the watch has not shown yet is fetched once.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use redirect_user::enrol::source::PodDetails;
use redirect_user::ids::PodRef;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::{self, Access};
use crate::pod::Pod;
use crate::server::{PodStore, StoreError};

/// How long the watch has to show a pod before it is fetched. The kubelet learns of a pod by a watch, too, so
/// the two are rarely far apart.
const HEAD_START: Duration = Duration::from_millis(100);
/// The first rest after a failure; it doubles up to [`REST_MAX`].
const REST: Duration = Duration::from_millis(200);
/// The longest rest: a server that comes back is noticed in this time.
const REST_MAX: Duration = Duration::from_secs(5);

/// Between two questions whether the server is back.
const PROBE: Duration = Duration::from_secs(1);

/// The pods of one node.
pub struct Pods {
    node: String,
    access: Access,
    known: RwLock<Known>,
    /// Goes up with each change, for those who wait for one.
    changes: watch::Sender<u64>,
    health: watch::Sender<Health>,
    client: RwLock<Option<Client>>,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<(String, String), Arc<Pod>>,
    /// What a new list has brought so far.
    listing: Option<HashMap<(String, String), Arc<Pod>>>,
}

/// How the watch is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// All pods were listed once.
    pub synced: bool,
    /// What went wrong since the last success.
    pub failure: Option<String>,
    /// Failures since the start.
    pub failures: u64,
    /// Lists since the start; more than one means that a watch could not be resumed.
    pub lists: u64,
}

impl Health {
    /// Synced, and nothing wrong at this time.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.synced && self.failure.is_none()
    }
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").field("node", &self.node).field("access", &self.access).finish_non_exhaustive()
    }
}

impl Pods {
    /// The pods of `node`; nothing is known before [`Pods::run`].
    #[must_use]
    pub fn new(node: &str, access: Access) -> Pods {
        Pods {
            node: node.to_owned(),
            access,
            known: RwLock::default(),
            changes: watch::Sender::default(),
            health: watch::Sender::default(),
            client: RwLock::default(),
        }
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How the watch is doing; a receiver of its changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// A receiver that learns of each change of a pod. The number has no meaning.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The client in use; none before the first.
    #[must_use]
    pub fn client(&self) -> Option<Client> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All pods that are known.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).pods.values().cloned().collect()
    }

    /// A pod by name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.known.read().unwrap_or_else(PoisonError::into_inner).pods.get(&key).cloned()
    }

    /// Watches for ever. Failures are logged and seen in [`Pods::health`].
    pub async fn run(&self) {
        let mut rest = REST;
        loop {
            match self.access.client().await {
                Ok(client) => {
                    *self.client.write().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
                    self.follow(client, &mut rest).await;
                }
                Err(error) => self.failed(&error.to_string(), &mut rest).await,
            }
        }
    }

    /// One client's watch, until the server no longer knows the client.
    async fn follow(&self, client: Client, rest: &mut Duration) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let mut events = pin!(watcher::watcher(Api::<Pod>::all(client.clone()), config));
        loop {
            let failing = self.health.borrow().failure.is_some();
            // A watch that goes on after a failure is silent until a pod changes.
            let event = tokio::select! {
                event = events.next() => event,
                () = answers(&client), if failing => {
                    self.recovered(false);
                    continue;
                }
            };
            let Some(event) = event else { return };
            match event {
                Ok(event) => {
                    *rest = REST;
                    self.apply(event);
                }
                Err(error) => {
                    let unknown = unauthorized(&error);
                    self.failed(&chain(&error), rest).await;
                    if unknown {
                        return;
                    }
                }
            }
        }
    }

    fn apply(&self, event: Event<Pod>) {
        let listed = matches!(event, Event::InitDone);
        self.known.write().unwrap_or_else(PoisonError::into_inner).apply(event);
        self.changes.send_modify(|number| *number += 1);
        self.recovered(listed);
    }

    fn recovered(&self, listed: bool) {
        self.health.send_if_modified(|health| {
            let before = health.clone();
            health.failure = None;
            health.synced |= listed;
            health.lists += u64::from(listed);
            *health != before
        });
    }

    async fn failed(&self, problem: &str, rest: &mut Duration) {
        let first = self.health.borrow().failure.is_none();
        if first {
            tracing::warn!(problem, "the watch on this node's pods failed; trying again");
        } else {
            tracing::debug!(problem, "the watch on this node's pods failed again");
        }
        self.health.send_modify(|health| {
            health.failures += 1;
            health.failure = Some(problem.to_owned());
        });
        sleep(*rest).await;
        *rest = (*rest * 2).min(REST_MAX);
    }

    /// The pod from the watch, waiting for it until `deadline`.
    async fn seen(&self, pod: &PodRef, deadline: Instant) -> Option<PodDetails> {
        let mut changes = self.changes();
        loop {
            if let Some(found) = self.get(&pod.namespace, &pod.name).filter(|found| found.is(pod)) {
                return Some(found.details());
            }
            timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Asks the API server itself, once. `None` means that there is no such pod.
    async fn fetch(&self, pod: &PodRef) -> Result<Option<PodDetails>, StoreError> {
        let failed = |problem: String| StoreError::Api { problem };
        let client = match self.client() {
            Some(client) => client,
            None => self.access.client().await.map_err(|error| failed(error.to_string()))?,
        };
        let found = Api::<Pod>::namespaced(client, &pod.namespace).get_opt(&pod.name).await;
        let found = found.map_err(|error| failed(chain(&error)))?;
        Ok(found.filter(|found| found.is(pod)).map(|found| found.details()))
    }
}

impl Known {
    fn apply(&mut self, event: Event<Pod>) {
        let key = |pod: &Pod| (pod.namespace().to_owned(), pod.name().to_owned());
        match event {
            Event::Init => self.listing = Some(HashMap::new()),
            Event::InitApply(mut pod) => {
                pod.shrink();
                self.listing.get_or_insert_default().insert(key(&pod), Arc::new(pod));
            }
            Event::InitDone => self.pods = self.listing.take().unwrap_or_default(),
            Event::Apply(mut pod) => {
                pod.shrink();
                self.pods.insert(key(&pod), Arc::new(pod));
            }
            Event::Delete(pod) => {
                self.pods.remove(&key(&pod));
            }
        }
    }
}

impl PodStore for Pods {
    /// A pod that the API server does not have, neither, is not waited for: it was deleted while it started.
    /// But a static pod starts before the API server is told of it.
    async fn find(&self, pod: &PodRef, wait: Duration) -> Result<Option<PodDetails>, StoreError> {
        let deadline = Instant::now() + wait;
        let head_start = Instant::now() + wait.min(HEAD_START);
        if let Some(found) = self.seen(pod, head_start).await {
            return Ok(Some(found));
        }
        let is_static = pod.uid.as_ref().is_some_and(|uid| !uid.contains('-'));
        let fetched = async {
            match timeout_at(deadline, self.fetch(pod)).await {
                Ok(Ok(None)) if is_static => std::future::pending().await,
                Ok(done @ Ok(_)) => done,
                Ok(failed) => {
                    tokio::time::sleep_until(deadline).await;
                    failed
                }
                Err(_) => Err(StoreError::Api { problem: format!("no answer in {wait:.1?}") }),
            }
        };
        tokio::select! {
            biased;
            found = self.seen(pod, deadline) => Ok(found),
            done = fetched => done,
        }
        .and_then(|found| match (&found, &self.health.borrow().failure) {
            (None, Some(problem)) => Err(StoreError::Api { problem: problem.clone() }),
            _ => Ok(found),
        })
    }
}

/// Resolves when the server has answered a small question, a moment after a failure. The watch itself is
/// polled beside it, and its next failure comes first.
async fn answers(client: &Client) {
    loop {
        sleep(PROBE).await;
        if client.apiserver_version().await.is_ok() {
            return;
        }
    }
}

fn unauthorized(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => api::is_unauthorized(error),
        watcher::Error::WatchError(status) => status.code == 401,
        watcher::Error::NoResourceVersion => false,
    }
}

/// An error and what is below it, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}
