//! What the parts of the agent know about the node, in one place for those who ask from outside.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use redirect_user::attach::tables::Tables;
use redirect_user::inspect;
use redirect_user::kernel::install;
use redirect_user::node::{Node, outcomes, timings};
use redirect_user::ready;
use tokio::sync::watch;

use crate::conflist::keep::{Installed, Wanted};
use crate::metrics::Metrics;
use crate::trial::Tried;
use crate::watch::{Health, Pods};

/// The agent's view of its node.
#[derive(Debug)]
pub struct State {
    /// Where pins and records are.
    pub node: Node,
    /// What is shown.
    pub metrics: Metrics,
    /// The pods of the API server, where it is asked.
    pub pods: Option<Arc<Pods>>,
    /// How the installation stands, where the agent installs.
    pub installed: Option<watch::Sender<Installed>>,
    /// How trials ended, where there are any.
    pub tried: Option<watch::Sender<Tried>>,
    wanted: Option<Wanted>,
    last: Mutex<Last>,
}

/// What was counted up to the last look.
#[derive(Debug, Default)]
struct Last {
    rewrites: u64,
    failures: u64,
}

impl State {
    /// A view of `node`, which is to have what is `wanted` where the agent installs, and is to be tried if
    /// `verify` says so.
    #[must_use]
    pub fn new(node: Node, pods: Option<Arc<Pods>>, wanted: Option<Wanted>, verify: bool) -> State {
        let installed = wanted.map(|_| watch::Sender::default());
        let tried = verify.then(watch::Sender::default);
        State { node, metrics: Metrics::default(), pods, installed, tried, wanted, last: Mutex::default() }
    }

    fn health(&self) -> Option<Health> {
        self.pods.as_ref().map(|pods| pods.health().borrow().clone())
    }

    /// What keeps the node from being ready, a line each.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.wanted == Some(Wanted::Nothing) {
            // The programs go with the last pod.
        } else if let Err(problem) = ready::ready(&self.node, None) {
            missing.push(format!("programs: {problem}"));
        } else if !install::installed(&self.node) {
            missing.push("programs: not on the node yet".to_owned());
        }
        if let Some(installed) = self.installed.as_ref().map(|installed| installed.borrow().clone())
            && !installed.ready
        {
            let problem = installed.problem.unwrap_or_else(|| "not looked yet".to_owned());
            missing.push(format!("installation: {problem}"));
        }
        if let Some(tried) = self.tried.as_ref().map(|tried| tried.borrow().clone())
            && (!tried.attempted || tried.problem.is_some())
        {
            missing.push(format!("verify: {}", tried.problem.unwrap_or_else(|| "not tried yet".to_owned())));
        }
        match self.health() {
            Some(health) if !health.alive() => {
                let problem = health.failure.unwrap_or_else(|| "no list of pods yet".to_owned());
                missing.push(format!("watch: {problem}"));
            }
            _ => {}
        }
        missing
    }

    /// Reads what others count.
    pub fn collect(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = &self.installed {
            let now = installed.borrow();
            self.metrics.install_ready.set(i64::from(now.ready));
            self.metrics.conf_rewrites.inc_by(now.rewrites - last.rewrites);
            last.rewrites = now.rewrites;
        }
        if let Some(health) = self.health() {
            self.metrics.watch_up.set(i64::from(health.alive()));
            self.metrics.watch_failures.inc_by(health.failures - last.failures);
            last.failures = health.failures;
        }
        match outcomes::counts(&self.node) {
            Ok(counts) => self.metrics.take_outcomes(&counts),
            Err(error) => tracing::warn!(%error, "cannot read the plugin's outcomes"),
        }
        match timings::take(&self.node) {
            Ok(taken) => taken.iter().for_each(|timing| self.metrics.take_timing(timing)),
            Err(error) => tracing::warn!(%error, "cannot read how long the plugin's calls took"),
        }
        self.collect_attachments();
    }

    fn collect_attachments(&self) {
        let attachments = inspect::list(&self.node).unwrap_or_default();
        let tables = Tables::open(&self.node).ok();
        let (mut enrolled, mut dead) = (0, 0);
        for attachment in &attachments {
            let links = inspect::links(&self.node, attachment).unwrap_or_default();
            let broken = links.iter().filter(|link| link.drift.is_some()).count();
            dead += i64::try_from(broken).unwrap_or(i64::MAX);
            enrolled += i64::from(broken == 0);
            let counters = tables.as_ref().and_then(|tables| tables.counters(attachment.cookie).ok());
            for (event, count) in counters.unwrap_or_default() {
                self.metrics.count(attachment.cookie, event, count);
            }
        }
        let alive: HashSet<u64> = attachments.iter().map(|attachment| attachment.cookie).collect();
        self.metrics.keep_pods(|cookie| alive.contains(&cookie));
        self.metrics.pods_enrolled.set(enrolled);
        self.metrics.links_dead.set(dead);
    }
}
