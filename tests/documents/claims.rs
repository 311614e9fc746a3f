//! A document that names a test names one that there is, and the tables of claims have one in every row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::table::{rows, section};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package")
}

fn documents() -> Vec<PathBuf> {
    let markdown = |folder: PathBuf| {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
    };
    markdown(root().to_owned()).chain(markdown(root().join("docs"))).collect()
}

/// The tests that a text names: file, name.
fn named(text: &str) -> Vec<(&str, &str)> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_/.:-".contains(c)));
    words.filter(|word| word.contains(".rs::")).filter_map(|word| word.split_once("::")).collect()
}

/// Whether the file has a test of that name: at the beginning of a line, and with the attribute above.
fn is_test(source: &str, name: &str) -> bool {
    let marks = |line: &str| line.starts_with("#[test") || line.starts_with("#[tokio::test");
    let lines: Vec<_> = source.lines().map(str::trim_start).collect();
    let place = lines.iter().position(|line| {
        let line = line.trim_start_matches("async ");
        line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')).is_some_and(|(found, _)| found == name)
    });
    place.is_some_and(|place| lines[..place].iter().rev().take(6).any(|line| marks(line)))
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut sources = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("a document");
        for (file, name) in named(&text) {
            count += 1;
            let source = sources
                .entry(file.to_owned())
                .or_insert_with(|| std::fs::read_to_string(root().join(file)).unwrap_or_default());
            if !is_test(source, name) {
                wrong.push(format!("{}: {file}::{name}", document.display()));
            }
        }
    }
    assert!(count > 50, "only {count} names found: this test no longer finds what the documents say");
    assert!(wrong.is_empty(), "no such test:\n{}", wrong.join("\n"));
}

/// The tables in which each row is a claim. What has no test says that it is a limit.
const CLAIMS: &[(&str, &str)] = &[
    ("SECURITY.md", "## Who can do what"),
    ("SECURITY.md", "## What the agent needs"),
    ("SECURITY.md", "## What can get into logs and events"),
    ("SECURITY.md", "## Ways out of a pod"),
    ("SECURITY.md", "## What a pod's author can switch off"),
    ("docs/neighbours.md", "# Neighbours"),
];

#[test]
fn every_claim_has_its_test() {
    for (document, heading) in CLAIMS {
        for row in rows(&section(document, heading)) {
            let last = row.last().expect("a cell");
            assert!(
                last.contains(".rs::") || last == "the same" || last.starts_with("limit"),
                "{document}: name a test, or say `limit`: {row:?}"
            );
        }
    }
}
