//! How long the plugin's calls took, kept for whoever collects it.
//!
//! One line per call, appended to `<state-dir>/timings`. Nothing waits for a collector and nothing grows
//! without one: a file that is full takes no more. As with outcomes, measuring is never worth a failure.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::node::{Node, private};

/// As many bytes as are kept for a collector: about ten thousand calls.
const FULL: u64 = 1 << 20;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// `ADD`, `DEL`, ...
    pub verb: String,
    /// How it ended: an outcome's label, or `failed_` and the code.
    pub result: String,
    /// Its parts; `total` is the whole.
    pub phases: Vec<(String, Duration)>,
}

/// A clock that is stopped between phases.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    lap: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl Clock {
    /// Starts.
    #[must_use]
    pub fn start() -> Clock {
        let now = Instant::now();
        Clock { start: now, lap: now, phases: Vec::new() }
    }

    /// What came since the last lap is this phase.
    pub fn lap(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.phases.push((phase, now - self.lap));
        self.lap = now;
    }

    /// Writes the call down.
    pub fn stop(self, node: &Node, verb: &str, result: &str) {
        let mut line = format!("{verb} {result} total={}", self.start.elapsed().as_micros());
        for (phase, took) in &self.phases {
            line += &format!(" {phase}={}", took.as_micros());
        }
        line.push('\n');
        if let Err(error) = append(node, line.as_bytes()) {
            tracing::debug!(%error, "the call's time is not kept");
        }
    }
}

/// Takes all calls that were kept, and forgets them.
///
/// # Errors
/// The file is there and cannot be taken.
pub fn take(node: &Node) -> io::Result<Vec<Timing>> {
    let taken = path(node).with_extension("taken");
    match fs::rename(path(node), &taken) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    }
    let text = fs::read_to_string(&taken)?;
    fs::remove_file(&taken)?;
    Ok(text.lines().filter_map(parse).collect())
}

fn append(node: &Node, line: &[u8]) -> io::Result<()> {
    let mut file = private::open(OpenOptions::new().append(true), &path(node))?;
    if file.metadata()?.len() >= FULL {
        return Err(io::Error::other("the file is full, and no agent collects the times"));
    }
    // One write of few bytes to a file that is opened for appending is not mixed with another's.
    file.write_all(line)
}

fn path(node: &Node) -> PathBuf {
    node.state_dir.join("timings")
}

fn parse(line: &str) -> Option<Timing> {
    let mut words = line.split(' ');
    let (verb, result) = (words.next()?.to_owned(), words.next()?.to_owned());
    let phase = |word: &str| {
        let (name, micros) = word.split_once('=')?;
        Some((name.to_owned(), Duration::from_micros(micros.parse().ok()?)))
    };
    Some(Timing { verb, result, phases: words.map(phase).collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_kept_until_they_are_taken_and_no_more_than_fit() {
        let state = std::env::temp_dir().join(format!("redirect-timings-{}", std::process::id()));
        let node = Node::new("/nonexistent", &state);
        let call = || {
            let mut clock = Clock::start();
            clock.lap("decide");
            clock.stop(&node, "ADD", "enrolled");
        };
        call();
        assert_eq!(take(&node).unwrap(), [], "without a state directory nothing is kept and nothing fails");
        fs::create_dir_all(&state).unwrap();
        call();
        call();
        let taken = take(&node).unwrap();
        assert_eq!(taken.len(), 2);
        let names: Vec<&str> = taken[0].phases.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            (names, taken[0].verb.as_str(), taken[0].result.as_str()),
            (vec!["total", "decide"], "ADD", "enrolled")
        );
        assert_eq!(take(&node).unwrap(), []);
        fs::write(path(&node), vec![b'x'; usize::try_from(FULL).unwrap()]).unwrap();
        call();
        assert_eq!(fs::metadata(path(&node)).unwrap().len(), FULL);
        fs::remove_dir_all(state).unwrap();
    }
}
