//! `redirect agent` from its start to its end: who runs, and in which order.
//!
//! Nothing of the node is changed when it ends: pods that run, and pods that start, need no agent for what
//! they have. Removing things is a verb of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redirect_user::enrol::Rules;
use redirect_user::enrol::source::PodDetails;
use redirect_user::gc::{self, Listed};
use redirect_user::ids::PodRef;
use redirect_user::kernel::install;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::api::{self, Access};
use crate::conflist::keep::{self, Plan, Wanted};
use crate::conflist::leave;
use crate::conflist::multus;
use crate::http;
use crate::logs::Logs;
use crate::manifests::Manifests;
use crate::repair::{Modes, Repairer};
use crate::server::{BindError, PodStore, Server, StoreError};
use crate::state::State;
use crate::trial::{self, Tried};
use crate::watch::Pods;

/// Between two tries to put the programs on the node.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two collections of what belongs to pods that are gone.
const COLLECT: Duration = Duration::from_secs(60);

/// What the agent is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where pins and records are.
    pub node: Node,
    /// Where the plugin asks.
    pub socket: PathBuf,
    /// Where pods come from.
    pub pods: Source,
    /// Where metrics and health are asked.
    pub listen: Option<SocketAddr>,
    /// The plugin's place on the node, where the agent keeps it.
    pub install: Option<Plan>,
    /// The text of the entry, where Multus gets it as a network of its own.
    pub multus: Option<String>,
    /// Try programs before pods get them, and the node before it is ready.
    pub verify: bool,
    /// What is done about broken pods, and by which rules a pod is ours.
    pub repair: Option<(Modes, Rules)>,
}

/// Where pods come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// None: where the runtime hands annotations over, the plugin asks for none.
    None,
    /// Files only.
    Manifests(PathBuf),
    /// The API server, and files for what it does not have.
    Api {
        /// How to get there.
        access: Access,
        /// This node's name.
        node: String,
        /// Files, which static pods have.
        manifests: Option<PathBuf>,
    },
}

/// Why the agent cannot start.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Credentials that make no sense will not get better by waiting.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The address for metrics.
    #[error(transparent)]
    Http(#[from] http::Error),
}

/// Runs until `stop` resolves.
///
/// # Errors
/// The agent cannot start. What goes wrong later is logged, shown, and tried again.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let server = Server::bind(&options.socket)?;
    let mut tasks = JoinSet::new();
    let stores = match options.pods {
        Source::None => Stores { pods: None, manifests: None },
        Source::Manifests(path) => Stores { pods: None, manifests: Some(Manifests::new(path)) },
        Source::Api { access, node, manifests } => {
            access.client().await?;
            let pods = Arc::new(Pods::new(&node, access));
            let watching = Arc::clone(&pods);
            tasks.spawn(async move { watching.run().await });
            Stores { pods: Some(pods), manifests: manifests.map(Manifests::new) }
        }
    };
    let wanted = options.install.as_ref().map(|plan| plan.wanted);
    let leaving = wanted == Some(Wanted::Nothing);
    let state = Arc::new(State::new(options.node, stores.pods.clone(), wanted, options.verify && !leaving));
    if let Some(address) = options.listen {
        tasks.spawn(http::serve(http::bind(address).await?, Arc::clone(&state)));
    }
    match Logs::bind(&options.socket) {
        Ok(logs) => drop(tasks.spawn(logs.read(Arc::clone(&state)))),
        Err(error) => tracing::warn!(%error, "the plugin's lines stay with the runtime"),
    }
    if !leaving && (stores.pods.is_some() || wanted.is_some()) {
        tasks.spawn(tend(Arc::clone(&state)));
    }
    if let (Some(plan), Some(installed)) = (options.install, state.installed.clone()) {
        if leaving {
            tasks.spawn(leave(Arc::clone(&state), plan.clone()));
        }
        let tried = state.tried.as_ref().map(watch::Sender::subscribe);
        tasks.spawn(async move {
            if let Some(mut tried) = tried {
                // A plugin does not come before the programs that belong to it. The sender lives as long as
                // we.
                let _ = tried.wait_for(|tried| tried.attempted && !tried.held).await;
            }
            keep::keep(plan, installed).await;
        });
    }
    if let (Some(entry), Some(pods)) = (options.multus, &stores.pods) {
        tasks.spawn(multus::keep(Arc::clone(pods), entry));
    }
    if let (Some((modes, rules)), Some(pods), false) = (options.repair, &stores.pods, leaving) {
        tasks.spawn(Repairer::new(Arc::clone(&state), Arc::clone(pods), rules, modes).run());
    }
    tracing::info!(socket = %options.socket.display(), "answering");
    server.serve(stores, stop).await;
    Ok(())
}

/// Puts the programs on the node, so that no pod pays for loading them, and collects what belongs to pods
/// that are gone.
async fn tend(state: Arc<State>) {
    let mut told = false;
    loop {
        let for_thread = Arc::clone(&state);
        let done = tokio::task::spawn_blocking(move || tend_once(&for_thread)).await;
        match done.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(collected) => {
                if collected > 0 {
                    tracing::info!(collected, "removed what belonged to pods that are gone");
                }
                told = false;
                sleep(COLLECT).await;
            }
            Err(problem) => {
                if !told {
                    tracing::error!(problem, "the programs on this node are not as they should be");
                }
                told = true;
                sleep(AGAIN).await;
            }
        }
    }
}

/// Takes programs and plugin away when the last redirected pod is gone.
async fn leave(state: Arc<State>, plan: Plan) {
    let mut last = None;
    loop {
        let (node, plan) = (state.node.clone(), plan.clone());
        let done = tokio::task::spawn_blocking(move || {
            leave::once(&node, &plan.conf_dir, &plan.bin_dir).map_err(|error| error.to_string())
        });
        let done = done.await.unwrap_or_else(|panic| Err(panic.to_string()));
        let said = match &done {
            Ok(left) if left.gone() => Ok(0),
            Ok(left) => Ok(left.pods),
            Err(problem) => Err(problem.clone()),
        };
        if last.as_ref() != Some(&said) {
            match &said {
                Ok(0) => tracing::info!("the plugin and its programs are off this node"),
                Ok(pods) => tracing::info!(
                    pods,
                    "new pods are not redirected; running ones still are, and the plugin stays to delete them"
                ),
                Err(problem) => tracing::warn!(problem, "cannot take the plugin off this node yet"),
            }
        }
        last = Some(said);
        sleep(AGAIN).await;
    }
}

fn tend_once(state: &State) -> Result<usize, String> {
    let node = &state.node;
    match &state.tried {
        Some(tried) => try_once(node, tried)?,
        None => {
            let lock = NodeLock::acquire(node).map_err(|error| error.to_string())?;
            install::ensure(node, &lock).map_err(|error| error.to_string())?;
        }
    }
    let lock = NodeLock::acquire(node).map_err(|error| error.to_string())?;
    let collected = gc::collect(node, &lock, |_| Listed::Unasked).map_err(|error| error.to_string())?;
    Ok(collected.removed.len() + collected.cookies.len())
}

/// Programs that are tried, and the node with them; again only when something was not as it should be.
fn try_once(node: &Node, tried: &watch::Sender<Tried>) -> Result<(), String> {
    let tell = |held: bool, problem: Option<String>| {
        tried.send_replace(Tried { attempted: true, held, problem });
    };
    match trial::bring(node) {
        Ok(Some(upgraded)) => {
            let (links, repaired) = (upgraded.replaced, upgraded.repaired.len());
            tracing::info!(links, repaired, "running pods have the new programs");
        }
        Ok(None) if tried.borrow().attempted && tried.borrow().problem.is_none() => return Ok(()),
        Ok(None) => {}
        Err(error) => {
            tell(matches!(error, trial::Error::Failed(_)), Some(error.to_string()));
            return Err(error.to_string());
        }
    }
    let verified = trial::verify(node);
    tell(false, verified.clone().err());
    if verified.is_ok() {
        tracing::info!("the node was tried in a scratch pod, and is as it should be");
    }
    verified
}

/// Files first, which cost nothing, then the API server.
struct Stores {
    pods: Option<Arc<Pods>>,
    manifests: Option<Manifests>,
}

impl PodStore for Stores {
    async fn find(&self, pod: &PodRef, wait: std::time::Duration) -> Result<Option<PodDetails>, StoreError> {
        match (&self.manifests, &self.pods) {
            (Some(manifests), None) => manifests.find(pod, wait).await,
            (None, Some(pods)) => pods.find(pod, wait).await,
            (Some(manifests), Some(pods)) => match manifests.look(pod) {
                Ok(Some(found)) => Ok(Some(found)),
                Ok(None) => pods.find(pod, wait).await,
                Err(error) => {
                    tracing::warn!(%error, "a manifest is left out");
                    pods.find(pod, wait).await
                }
            },
            (None, None) => Ok(None),
        }
    }
}
