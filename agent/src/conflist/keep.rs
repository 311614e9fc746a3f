//! Keeps binary and entry in their places: looks again whenever a file of the two directories changes, and
//! from time to time without a reason.
//!
//! The directories are watched before they are looked at, so no change falls in between. Somebody who
//! rewrites the same file again and again is answered once a second, and named in the log after a while.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::files::{self, Done};

/// Between two rewrites at least.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at most.
const LOOK: Duration = Duration::from_secs(10);
/// A file that is being written often changes more than once: what follows so soon is looked at together.
const SETTLE: Duration = Duration::from_millis(30);
/// So many rewrites in [`FIGHT_TIME`] are a fight.
const FIGHT: usize = 5;
/// See [`FIGHT`]; and between two lines in the log about it.
const FIGHT_TIME: Duration = Duration::from_secs(60);

/// What to keep where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory that the runtime reads its network configuration from.
    pub conf_dir: PathBuf,
    /// The directory that the runtime looks for plugins in.
    pub bin_dir: PathBuf,
    /// The plugin that comes with this agent.
    pub plugin: PathBuf,
    /// The text of the entry.
    pub entry: String,
    /// A file of our own instead of an entry in somebody else's; its name should sort first.
    pub own_file: Option<String>,
    /// The name of the file that gets the entry, instead of the first valid one.
    pub named_file: Option<String>,
    /// What the node is to have.
    pub wanted: Wanted,
}

/// What the node is to have of the plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The plugin, and its entry.
    #[default]
    Entry,
    /// The plugin without an entry in the node's files: Multus has it as a network of its own.
    Plugin,
    /// No entry; and no plugin either when the last redirected pod is gone.
    Nothing,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Binary and entry are where they belong.
    pub ready: bool,
    /// The file with the entry; the directory, where there is to be none.
    pub primary: Option<PathBuf>,
    /// What is in the way.
    pub problem: Option<String>,
    /// How often a file was changed, the first time included.
    pub rewrites: u64,
}

/// One look, and what it takes to be right again.
///
/// # Errors
/// See [`files::Error`].
pub fn once(plan: &Plan) -> Result<Done, files::Error> {
    if plan.wanted == Wanted::Nothing {
        return Ok(Done { primary: Some(plan.conf_dir.clone()), ..files::disable(&plan.conf_dir)? });
    }
    // A runtime that reads the entry must find the binary.
    files::install_binary(&plan.plugin, &plan.bin_dir)?;
    if plan.wanted == Wanted::Plugin {
        return Ok(Done { primary: Some(plan.bin_dir.clone()), ..files::disable(&plan.conf_dir)? });
    }
    files::enable(&plan.conf_dir, &plan.entry, plan.own_file.as_deref(), plan.named_file.as_deref())
}

/// Keeps for ever.
pub async fn keep(plan: Plan, state: watch::Sender<Installed>) {
    let mut fights = Fights::default();
    loop {
        match watched(&plan) {
            Ok(inotify) => {
                let Ok(events) = inotify.into_event_stream([0; 4096]) else { return };
                let mut events = pin!(events);
                loop {
                    let changed = look(&plan, &state, &mut fights).await;
                    if changed {
                        sleep(PAUSE).await;
                    }
                    match timeout(LOOK, events.next()).await {
                        // The directory itself is gone or moved: watch the one that takes its place.
                        Ok(Some(Ok(event))) if is_end(&event) => break,
                        Ok(None | Some(Err(_))) => break,
                        Ok(Some(Ok(_))) => sleep(SETTLE).await,
                        Err(_) => {}
                    }
                    while let Ok(Some(Ok(_))) = timeout(Duration::ZERO, events.next()).await {}
                }
            }
            Err(problem) => report(&state, |now| {
                now.ready = false;
                now.problem = Some(problem);
            }),
        }
        sleep(PAUSE).await;
    }
}

fn is_end<S>(event: &inotify::Event<S>) -> bool {
    use inotify::EventMask;
    event
        .mask
        .intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT)
}

fn watched(plan: &Plan) -> Result<Inotify, String> {
    let inotify = Inotify::init().map_err(|error| format!("cannot watch directories: {error}"))?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    for dir in [&plan.conf_dir, &plan.bin_dir] {
        let failed = |error| {
            format!(
                "cannot watch {}: {error}; is it where the runtime looks? see --cni-conf-dir and --cni-bin-dir",
                dir.display()
            )
        };
        inotify.watches().add(dir, mask).map_err(failed)?;
    }
    Ok(inotify)
}

/// One look in a thread of its own, since it writes to disk. Whether it changed something.
async fn look(plan: &Plan, state: &watch::Sender<Installed>, fights: &mut Fights) -> bool {
    let for_thread = plan.clone();
    let done = match tokio::task::spawn_blocking(move || once(&for_thread)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => return fail(state, error.to_string()),
        Err(panic) => return fail(state, panic.to_string()),
    };
    let Some(primary) = &done.primary else {
        let skipped = done.skipped.join("; ");
        let none = format!("no valid network configuration in {} yet", plan.conf_dir.display());
        return fail(state, if skipped.is_empty() { none } else { format!("{none} ({skipped})") });
    };
    for file in &done.changed {
        match plan.wanted {
            Wanted::Entry => {
                tracing::info!(file = %file.display(), "changed so that pods with sidecars are redirected");
            }
            Wanted::Plugin | Wanted::Nothing => {
                tracing::info!(file = %file.display(), "changed: it has no entry of redirect-cni any more");
            }
        }
        fights.note(file);
    }
    report(state, |now| {
        now.ready = true;
        now.problem = None;
        now.primary = Some(primary.clone());
        now.rewrites += done.changed.len() as u64;
    });
    !done.changed.is_empty()
}

fn fail(state: &watch::Sender<Installed>, problem: String) -> bool {
    report(state, |now| {
        now.ready = false;
        now.problem = Some(problem);
    });
    false
}

fn report(state: &watch::Sender<Installed>, change: impl FnOnce(&mut Installed)) {
    state.send_if_modified(|now| {
        let before = now.clone();
        change(now);
        if let Some(problem) = now.problem.as_ref().filter(|problem| before.problem.as_ref() != Some(problem))
        {
            tracing::warn!(problem, "not installed");
        }
        *now != before
    });
}

/// Who rewrites what we wrote.
#[derive(Debug, Default)]
struct Fights {
    rewrites: VecDeque<Instant>,
    told: Option<Instant>,
}

impl Fights {
    fn note(&mut self, file: &Path) {
        let now = Instant::now();
        self.rewrites.push_back(now);
        while self.rewrites.front().is_some_and(|time| now - *time > FIGHT_TIME) {
            self.rewrites.pop_front();
        }
        let quiet = self.told.is_some_and(|told| now - told < FIGHT_TIME);
        if self.rewrites.len() > FIGHT && !quiet {
            self.told = Some(now);
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            tracing::warn!(
                file = %file.display(),
                rewrites = self.rewrites.len(),
                hint = hint(&name),
                "something keeps taking redirect-cni's entry out of the network configuration"
            );
        }
    }
}

/// What is known about those who rewrite files of this name.
fn hint(name: &str) -> &'static str {
    let known = [
        ("cilium", "Cilium removes other plugins while its value cni.exclusive is true: set it to false"),
        ("azure", "AKS brings its file back from time to time: use --own-conf-file 02-redirect-cni.conflist"),
        ("multus", "Multus writes its file again from the other ones: use its delegate's file, or --multus"),
        (
            "calico",
            "Calico's install-cni writes its file when it restarts; a restart loop of it shows like this",
        ),
    ];
    let found = known.iter().find(|(part, _)| name.contains(part));
    found.map_or(
        "find out which installer owns the file, or use --own-conf-file 02-redirect-cni.conflist",
        |k| k.1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fighters_get_a_hint_of_their_own() {
        assert!(hint("05-cilium.conflist").contains("cni.exclusive"));
        assert!(hint("15-azure-swift-overlay.conflist").contains("AKS"));
        assert!(hint("10-net.conflist").contains("--own-conf-file"));
    }
}
