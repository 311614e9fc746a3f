//! CONTRIBUTING.md against `cargo xtask`: its commands and its tiers.

use std::collections::BTreeSet;
use std::process::Command;

use harness::binary;

use crate::commands::subcommands;
use crate::table::{assert_same, column, rows, section};

const PLACE: &str = "CONTRIBUTING.md";

#[test]
fn every_command_of_xtask_is_documented() {
    let commands = column(&rows(&section(PLACE, "## Commands")), 0);
    let word = |command: String| command.split_whitespace().nth(2).map(str::to_owned);
    let documented = commands.into_iter().filter_map(word).collect();
    assert_same("the table of commands in CONTRIBUTING.md", &documented, &subcommands("xtask"));
}

/// What `cargo xtask test --list` prints: one tier a line, its name first.
#[test]
fn every_tier_is_documented() {
    let list = Command::new(binary("xtask")).args(["test", "--list"]).output().expect("xtask starts");
    assert!(list.status.success(), "{list:?}");
    let lines = String::from_utf8(list.stdout).expect("text");
    let real: BTreeSet<_> =
        lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert_same(
        "the table of tiers in CONTRIBUTING.md",
        &column(&rows(&section(PLACE, "## Test tiers")), 0),
        &real,
    );
}
