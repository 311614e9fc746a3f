//! The node's programs are tried before pods depend on them: new ones in an installation of their own beside
//! the old ones, and then the node as it is.

use std::fs;
use std::sync::atomic::AtomicBool;

use redirect_user::kernel::install;
use redirect_user::node::lock::{self, NodeLock};
use redirect_user::node::{Node, private};
use redirect_user::path_error::PathError;
use redirect_user::upgrade::{self, Upgraded};
use redirect_user::verify::{self, Options, Report, State};
use thiserror::Error;

/// What an installation that is only tried is called, below bpffs and below the state directory.
const ASIDE: &str = "redirect-cni-trial";

/// Why the node does not have this build's programs.
#[derive(Debug, Error)]
pub enum Error {
    /// They do not do what they should; those that were there stay.
    #[error("the new programs failed their trial, so the old ones stay: {0}")]
    Failed(String),
    /// There is no place to try them.
    #[error(transparent)]
    Place(#[from] PathError),
    /// The node's lock.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// They cannot be loaded.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// They cannot take the old ones' place everywhere.
    #[error(transparent)]
    Upgrade(#[from] upgrade::Error),
}

/// What is known of the node's programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// They were tried at least once.
    pub attempted: bool,
    /// New ones failed, so the plugin that belongs to them must not come to the node either.
    pub held: bool,
    /// What is wrong with them.
    pub problem: Option<String>,
}

/// Puts this build's programs on the node. Where another build's are, these are tried first, and then running
/// pods get them, without a moment in between. An older build's agent goes back by the same way.
///
/// # Errors
/// See [`Error`]; with [`Error::Failed`] nothing was changed.
pub fn bring(node: &Node) -> Result<Option<Upgraded>, Error> {
    if !upgrade::is_due(node) {
        install::ensure(node, &NodeLock::acquire(node)?)?;
        return Ok(None);
    }
    aside(node)?;
    Ok(Some(upgrade::upgrade(node, &NodeLock::acquire(node)?)?))
}

/// Tries the node in a scratch pod; what is wrong, in words.
///
/// # Errors
/// What failed, of all trials.
pub fn verify(node: &Node) -> Result<(), String> {
    let report = verify::run(node, &Options::default(), &AtomicBool::new(false));
    if report.passed { Ok(()) } else { Err(words(&report)) }
}

/// An installation of its own, with which no pod has to do.
fn aside(node: &Node) -> Result<(), Error> {
    let trial = Node::new(node.bpffs.join(ASIDE), node.state_dir.join(ASIDE));
    fs::create_dir_all(&trial.bpffs).map_err(PathError::at("make", &trial.bpffs))?;
    private::make_dir(&trial.state_dir)?;
    let tried = try_aside(&trial);
    if let Ok(lock) = NodeLock::acquire(&trial) {
        let _ = install::remove(&trial, &lock);
    }
    // What stays of a trial is in the way of nothing, and the next one takes it away.
    let _ = fs::remove_dir(&trial.bpffs);
    let _ = fs::remove_dir_all(&trial.state_dir);
    tried
}

fn try_aside(trial: &Node) -> Result<(), Error> {
    install::ensure(trial, &NodeLock::acquire(trial)?)?;
    verify(trial).map_err(Error::Failed)
}

/// The first of what is wrong; all of it would not fit an Event or a line.
fn words(report: &Report) -> String {
    let failed = report.trials.iter().filter(|tried| tried.state == State::Failed);
    let failed = failed.map(|tried| format!("{} over {}: {}", tried.name, tried.family, tried.detail));
    let mut all: Vec<String> = report.faults.iter().cloned().chain(failed).collect();
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    if more > 0 {
        all.push(format!("and {more} more; `redirect verify` on the node shows all"));
    }
    all.join("; ")
}
