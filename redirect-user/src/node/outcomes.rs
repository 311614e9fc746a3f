//! How often the plugin came to each outcome, counted across its short lives.
//!
//! One file per outcome below `<state-dir>/outcomes`, one byte appended per event: the size is the count. An
//! append of one byte needs no lock and cannot be torn, a million pod starts are a megabyte, and the state
//! directory is emptied at boot. Counting is never worth a failure: where the directory cannot be written (no
//! privileges, a read-only node), the event goes uncounted, and the log has it all the same.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::node::{Node, private};

/// Counts one event; `outcome` is a label of lower-case letters, digits and underscores.
pub fn count(node: &Node, outcome: &str) {
    if let Err(error) = append(node, outcome) {
        tracing::debug!(outcome, %error, "not counted");
    }
}

/// All counts so far; none where nothing was counted yet.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn counts(node: &Node) -> io::Result<BTreeMap<String, u64>> {
    let entries = match fs::read_dir(folder(node)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    entries
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        })
        .collect()
}

fn folder(node: &Node) -> PathBuf {
    node.state_dir.join("outcomes")
}

fn append(node: &Node, outcome: &str) -> io::Result<()> {
    let folder = folder(node);
    let open = || private::open(OpenOptions::new().append(true), &folder.join(outcome));
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private::make_dir(&folder).map_err(|error| error.source)?;
            open()?
        }
        other => other?,
    };
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_add_up_also_from_many_writers() {
        let state = std::env::temp_dir().join(format!("redirect-tally-{}", std::process::id()));
        let node = Node::new("/nonexistent", &state);
        assert_eq!(counts(&node).unwrap(), BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| count(&node, "enrolled")));
            }
        });
        count(&node, "not_injected");
        let expected = BTreeMap::from([("enrolled".to_owned(), 400), ("not_injected".to_owned(), 1)]);
        assert_eq!(counts(&node).unwrap(), expected);
        fs::remove_dir_all(state).unwrap();
    }

    #[test]
    fn where_nothing_can_be_written_nothing_fails() {
        let node = Node::new("/nonexistent", "/proc/nowhere");
        count(&node, "enrolled");
        assert_eq!(counts(&node).unwrap(), BTreeMap::new());
    }
}
