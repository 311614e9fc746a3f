//! Pods that should be redirected and are not: started before the plugin was there, or with links that are
//! gone.
//!
//! Every few seconds, and whenever a pod changes, each pod with a sidecar is compared with what is attached.
//! What to do about a broken one is Istio's choice of three: repair it while it runs, delete it, or label it.

pub mod addresses;
pub mod events;
pub mod running;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use redirect_user::attach::record::Attachment;
use redirect_user::enrol::source::{Error as SourceError, PodDetails, PodSource, STATUS};
use redirect_user::enrol::{Enrolment, Reason, Rules, enrol};
use redirect_user::ids::PodRef;
use redirect_user::inspect;
use redirect_user::policy::Policy;
use redirect_user::policy::annotations::Annotations;
use redirect_user::reset;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use self::addresses::Addresses;
use self::events::Events;
use crate::metrics::Repair;
use crate::pod::Pod;
use crate::state::State;
use crate::watch::Pods;

/// Between two looks without a reason.
const LOOK: Duration = Duration::from_secs(2);
/// Changes often come together.
const SETTLE: Duration = Duration::from_millis(100);
/// A pod is tried so often, with rests that double, as Istio does.
const TRIES: u32 = 5;
/// The first rest.
const REST: Duration = Duration::from_secs(2);

/// What is done about broken pods. Where several are set, the first of repair, delete, label counts.
#[derive(Clone, Debug)]
pub struct Modes {
    /// Attach them while they run.
    pub repair_pods: bool,
    /// Delete them, so that their owner makes them again.
    pub delete_pods: bool,
    /// Label them.
    pub label_pods: bool,
    /// The label's key.
    pub label_key: String,
    /// The label's value.
    pub label_value: String,
    /// The init container that fails in a pod that is not redirected.
    pub init_container: String,
    /// Policy follows the annotations of a running pod.
    pub live_policy: bool,
    /// Connections from before a repair that go around the sidecar are ended.
    pub reset_connections: bool,
}

impl Default for Modes {
    fn default() -> Modes {
        Modes {
            repair_pods: false,
            delete_pods: false,
            label_pods: false,
            label_key: "cni.istio.io/uninitialized".to_owned(),
            label_value: "true".to_owned(),
            init_container: "istio-validation".to_owned(),
            live_policy: false,
            reset_connections: false,
        }
    }
}

/// Looks after the pods.
#[derive(Debug)]
pub struct Repairer {
    state: Arc<State>,
    pods: Arc<Pods>,
    rules: Arc<Rules>,
    modes: Modes,
    events: Events,
    addresses: Addresses,
    /// By uid: how often it was tried, and when it may be tried again.
    tried: HashMap<String, (u32, Instant)>,
    /// Pods that were told something once.
    told: HashSet<String>,
}

/// Pods, and what is wrong with each.
type Findings = Vec<(Arc<Pod>, Finding)>;

/// What is wrong with a pod.
enum Finding {
    /// It should be attached, and is not, or not as it should be.
    Broken { policy: Box<Policy>, was: Option<Box<Attachment>>, running: bool },
    /// It runs with another policy than its annotations ask for.
    Changed { policy: Box<Policy>, was: Box<Attachment> },
    /// Its annotations cannot be used.
    Invalid(String),
    /// It programs iptables itself.
    IstioInit,
}

impl Repairer {
    /// One for the pods of `pods`.
    #[must_use]
    pub fn new(state: Arc<State>, pods: Arc<Pods>, rules: Rules, modes: Modes) -> Repairer {
        let events = Events::new(pods.node());
        Repairer {
            state,
            pods,
            rules: Arc::new(rules),
            modes,
            events,
            addresses: Addresses::default(),
            tried: HashMap::new(),
            told: HashSet::new(),
        }
    }

    /// Looks for ever.
    pub async fn run(mut self) {
        let mut changes = self.pods.changes();
        loop {
            if self.pods.health().borrow().synced {
                self.pass().await;
            }
            if timeout(LOOK, changes.changed()).await.is_ok() {
                sleep(SETTLE).await;
                changes.mark_unchanged();
            }
        }
    }

    async fn pass(&mut self) {
        let pods = self.pods.all();
        let known: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.tried.retain(|uid, _| known.contains(uid.as_str()));
        self.told.retain(|uid| known.contains(uid.as_str()));
        let (state, rules, modes) = (Arc::clone(&self.state), Arc::clone(&self.rules), self.modes.clone());
        let look = tokio::task::spawn_blocking(move || find_all(&state, &rules, &modes, &pods));
        let Ok(Some((attachments, findings))) = look.await else { return };
        self.addresses.follow(&self.state, &attachments);
        let broken =
            |finding: &(Arc<Pod>, Finding)| matches!(finding.1, Finding::Broken { running: true, .. });
        let missing = findings.iter().filter(|finding| broken(finding)).count();
        self.state.metrics.pods_missing.set(i64::try_from(missing).unwrap_or(i64::MAX));
        for (pod, finding) in findings {
            self.act(&pod, finding).await;
        }
    }

    async fn act(&mut self, pod: &Arc<Pod>, finding: Finding) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match finding {
            Finding::IstioInit if self.told.insert(uid.clone()) => {
                self.say(pod, events::ISTIO_INIT).await;
            }
            Finding::Invalid(problem) if self.told.insert(uid.clone()) => {
                tracing::warn!(pod = %pod.reference(), problem, "its annotations cannot be used");
                self.say(pod, events::INVALID.with(&problem)).await;
            }
            Finding::IstioInit | Finding::Invalid(_) => {}
            Finding::Changed { policy, was } => self.update(pod, *policy, *was).await,
            Finding::Broken { policy, was, running } => {
                if !self.may_try(&uid) {
                    return;
                }
                if self.modes.repair_pods && running {
                    self.repair(pod, *policy, was.map(|was| *was)).await;
                } else if self.modes.delete_pods && !self.modes.repair_pods {
                    self.delete(pod).await;
                } else if self.modes.label_pods && !self.modes.repair_pods {
                    self.label(pod).await;
                }
            }
        }
    }

    fn may_try(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        let (tries, next) = self.tried.get(uid).copied().unwrap_or((0, now));
        if tries >= TRIES || next > now {
            return false;
        }
        self.tried.insert(uid.to_owned(), (tries + 1, now + REST * 2u32.pow(tries)));
        true
    }

    async fn repair(&mut self, pod: &Arc<Pod>, policy: Policy, was: Option<Attachment>) {
        let (node, for_thread) = (self.state.node.clone(), Arc::clone(pod));
        let reset = self.modes.reset_connections;
        let done = tokio::task::spawn_blocking(move || {
            let attached = running::attach(&node, &for_thread, policy, was);
            let Some((attachment, listeners)) = attached.map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            let ended = reset.then(|| reset::around(&attachment).map_err(|error| error.to_string()));
            Ok::<_, String>(Some((listeners, ended)))
        });
        match done.await.unwrap_or_else(|panic| Err(panic.to_string())) {
            // The plugin was faster.
            Ok(None) => drop(self.tried.remove(pod.metadata.uid.as_deref().unwrap_or_default())),
            Ok(Some((listeners, ended))) => {
                tracing::info!(pod = %pod.reference(), listeners, "redirected while it runs");
                self.count("repair", "success");
                self.tried.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                let message = self.after_reset(pod, ended);
                self.say(pod, message).await;
            }
            Err(problem) => {
                tracing::warn!(pod = %pod.reference(), problem, "cannot redirect it while it runs");
                self.count("repair", "fail");
                self.say(pod, events::REPAIR_FAILED.with(&problem)).await;
            }
        }
    }

    /// What the Event says of connections from before; `None` where they were not to be ended.
    fn after_reset(&self, pod: &Pod, ended: Option<Result<usize, String>>) -> events::Message {
        match ended {
            None => events::REPAIRED,
            Some(Ok(connections)) => {
                tracing::info!(pod = %pod.reference(), connections, "connections around the sidecar are reset");
                self.count("reset", "success");
                events::REPAIRED_RESET.with(&connections.to_string())
            }
            Some(Err(problem)) => {
                tracing::warn!(pod = %pod.reference(), problem, "connections from before go on: cannot reset them");
                self.count("reset", "fail");
                events::REPAIRED_NO_RESET.with(&problem)
            }
        }
    }

    async fn update(&mut self, pod: &Arc<Pod>, policy: Policy, was: Attachment) {
        let (node, for_thread) = (self.state.node.clone(), Arc::clone(pod));
        let done = tokio::task::spawn_blocking(move || {
            running::attach(&node, &for_thread, policy, Some(was)).map_err(|error| error.to_string())
        });
        match done.await.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(None) => {}
            Ok(Some(_)) => {
                tracing::info!(pod = %pod.reference(), "its policy follows its annotations");
                self.state.metrics.policy_updates.inc();
                self.say(pod, events::POLICY_CHANGED).await;
            }
            Err(problem) => {
                tracing::warn!(pod = %pod.reference(), problem, "cannot change its policy");
                self.say(pod, events::POLICY_FAILED.with(&problem)).await;
            }
        }
    }

    async fn delete(&mut self, pod: &Pod) {
        let Some(api) = self.api(pod) else { return };
        let preconditions = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
        };
        let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(pod.name(), &how).await {
            Ok(_) => {
                tracing::info!(pod = %pod.reference(), "deleted, since it is not redirected");
                self.count("delete", "success");
                self.say(pod, events::DELETED).await;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => self.count("delete", "skip"),
            Err(error) => {
                tracing::warn!(pod = %pod.reference(), %error, "cannot delete it");
                self.count("delete", "fail");
            }
        }
    }

    async fn label(&mut self, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(&self.modes.label_key)) {
            return self.count("label", "skip");
        }
        let Some(api) = self.api(pod) else { return };
        let label = json!({ "metadata": { "labels": { (&self.modes.label_key): self.modes.label_value } } });
        match api.patch_status(pod.name(), &PatchParams::default(), &Patch::Merge(label)).await {
            Ok(_) => {
                tracing::info!(pod = %pod.reference(), "labelled, since it is not redirected");
                self.count("label", "success");
                self.say(pod, events::LABELLED).await;
            }
            Err(error) => {
                tracing::warn!(pod = %pod.reference(), %error, "cannot label it");
                self.count("label", "fail");
            }
        }
    }

    fn api(&self, pod: &Pod) -> Option<Api<Pod>> {
        self.pods.client().map(|client| Api::namespaced(client, pod.namespace()))
    }

    fn count(&self, r#type: &'static str, result: &'static str) {
        self.state.metrics.repairs.get_or_create(&Repair { r#type, result }).inc();
    }

    async fn say(&self, pod: &Pod, message: events::Message) {
        if let Some(client) = self.pods.client() {
            self.events.publish(client, pod, message).await;
        }
    }
}

/// What is attached, and everything that is wrong with the pods of this node.
fn find_all(
    state: &State,
    rules: &Rules,
    modes: &Modes,
    pods: &[Arc<Pod>],
) -> Option<(Vec<Attachment>, Findings)> {
    let attachments = match inspect::list(&state.node) {
        Ok(attachments) => attachments,
        Err(error) => {
            tracing::warn!(%error, "cannot compare the pods with what is attached");
            return None;
        }
    };
    let looked = pods.iter().filter_map(|pod| {
        let finding = find(state, rules, modes, pod, &attachments)?;
        Some((Arc::clone(pod), finding))
    });
    let findings = looked.collect();
    Some((attachments, findings))
}

fn find(
    state: &State,
    rules: &Rules,
    modes: &Modes,
    pod: &Pod,
    attachments: &[Attachment],
) -> Option<Finding> {
    let annotated = pod.metadata.annotations.as_ref().is_some_and(|known| known.contains_key(STATUS));
    if !annotated || pod.ended() || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let reference = pod.reference();
    let policy = match enrol(&reference, None, rules, &Known(pod.details())) {
        Ok(Enrolment::Enrolled { policy, .. }) => policy,
        Ok(Enrolment::NotEnrolled(Reason::IstioInit)) => return Some(Finding::IstioInit),
        Ok(Enrolment::NotEnrolled(_)) => return None,
        Err(error) => return Some(Finding::Invalid(error.to_string())),
    };
    let of_pod = |attachment: &&Attachment| {
        attachment.of_this_boot() && attachment.pod.as_ref().is_some_and(|known| known.uid == reference.uid)
    };
    // A pod may have an old sandbox beside its new one: the one that works counts.
    let (mut was, mut works) = (None, None);
    for attachment in attachments.iter().filter(of_pod) {
        let drift = inspect::check(&state.node, &attachment.id);
        let fine = drift.is_ok_and(|drift| drift.is_empty());
        if fine { works = Some(attachment) } else { was = Some(attachment) }
    }
    match works {
        Some(attachment) if modes.live_policy && attachment.policy != *policy => {
            Some(Finding::Changed { policy, was: Box::new(attachment.clone()) })
        }
        Some(_) => None,
        None => {
            let running = running::has_processes(pod);
            let failed = validation_failed(pod, modes);
            let was = was.cloned().map(Box::new);
            (running || failed).then_some(Finding::Broken { policy, was, running })
        }
    }
}

/// Istio's own sign: the init container that looks for redirection has ended with 126.
fn validation_failed(pod: &Pod, modes: &Modes) -> bool {
    let statuses = &pod.status.init_container_statuses;
    let named = statuses.iter().find(|status| status.name == modes.init_container);
    named.is_some_and(|status| {
        let now = status.state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
        let last = status.last_state.terminated.as_ref().is_some_and(|end| end.exit_code == 126);
        !now && last
    })
}

/// A pod that is known already, as a source.
struct Known(PodDetails);

impl PodSource for Known {
    fn details(&self, _: &PodRef, _: Option<&Annotations>) -> Result<PodDetails, SourceError> {
        Ok(self.0.clone())
    }
}
