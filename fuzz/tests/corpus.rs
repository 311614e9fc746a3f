//! Every kept input goes through its function, and some of them are understood and some refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::{Outcome, TARGETS, Target};

/// The most that is kept for one function: a corpus is for the unit tests, too.
const MOST_INPUTS: usize = 60;
/// The longest kept input in bytes.
const LONGEST: usize = 4096;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// Feeds one function, and counts what it made of its inputs.
fn outcomes(target: &Target) -> Vec<Outcome> {
    let feed = |path: PathBuf| {
        let data = fs::read(&path).expect("an input");
        assert!(data.len() <= LONGEST, "{} has {} bytes", path.display(), data.len());
        // The last name is the input that a panic is about.
        println!("{}", path.display());
        (target.feed)(&data)
    };
    files(&corpus().join(target.name)).into_iter().map(feed).collect()
}

#[test]
fn every_kept_input_is_read_or_refused() {
    for target in TARGETS {
        let outcomes = outcomes(&target);
        let count = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count();
        let (read, refused, all) = (count(Outcome::Read), count(Outcome::Refused), outcomes.len());
        println!("{}: {all} inputs, {read} understood, {refused} refused", target.name);
        assert!(all <= MOST_INPUTS, "{} has {all} inputs", target.name);
        assert!(read > 0 && refused > 0, "{}: {read} understood, {refused} refused", target.name);
    }
}

#[test]
fn every_folder_has_its_function() {
    let folders = files(&corpus());
    let folders: BTreeSet<_> = folders.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name).collect());
    assert!(
        TARGETS.iter().all(|target| Target::named(target.name).is_some_and(|one| one.name == target.name))
    );
}
