//! Reads tables out of Markdown, and says what a table lacks or has too much.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

/// A file of the repository, as text.
pub(crate) fn text_of(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The text below a heading, up to the next heading of the same or a higher level.
pub(crate) fn section(path: &str, heading: &str) -> String {
    let text = text_of(path);
    let level = heading.split(' ').next().expect("a heading begins with its marks");
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "{path} has no heading {heading:?}");
    let ends = |line: &&str| {
        let marks = line.split(' ').next().unwrap_or_default();
        !(marks.len() <= level.len() && marks.starts_with('#') && marks.bytes().all(|byte| byte == b'#'))
    };
    lines.take_while(ends).map(|line| format!("{line}\n")).collect()
}

/// The rows of the first table in a text: its cells without blanks and backticks at their ends.
pub(crate) fn rows(text: &str) -> Vec<Vec<String>> {
    let lines =
        text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    // A bar inside a code span is written `\|`.
    let row = |line: &str| {
        let line = line.replace("\\|", "\0");
        let cells = line.trim().trim_matches('|').split('|').map(cell);
        cells.map(|cell| cell.replace('\0', "|")).collect()
    };
    let rows: Vec<_> = lines.skip(2).map(row).collect();
    assert!(!rows.is_empty(), "no table in:\n{text}");
    rows
}

/// Fails when a document and the code name different things.
#[track_caller]
pub(crate) fn assert_same(place: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    assert!(
        !real.is_empty(),
        "nothing to compare with {place}: this test no longer finds what the code says"
    );
    let mut fault = String::new();
    for name in real.difference(documented) {
        let _ = writeln!(fault, "  add a row for {name}: the code has it");
    }
    for name in documented.difference(real) {
        let _ = writeln!(fault, "  remove {name}: the code does not have it");
    }
    assert!(fault.is_empty(), "{place} is out of date:\n{fault}");
}

/// The cells of one column.
pub(crate) fn column(rows: &[Vec<String>], index: usize) -> BTreeSet<String> {
    rows.iter().map(|row| row[index].clone()).collect()
}

#[test]
fn a_row_too_many_and_a_row_too_few_are_both_named() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let compare = || assert_same("the table", &set(&["a", "old"]), &set(&["a", "new"]));
    let panic = std::panic::catch_unwind(compare).expect_err("the sets differ");
    let text = panic.downcast_ref::<String>().expect("a panic with a text");
    assert!(text.contains("add a row for new") && text.contains("remove old"), "{text}");
}

#[test]
fn cells_lose_their_marks_and_keep_their_bars() {
    let text = "words\n\n| a | b |\n|---|---|\n| `x` | one \\| two |\n\nmore\n| no | table |\n";
    assert_eq!(rows(text), [["x", "one | two"]]);
}
