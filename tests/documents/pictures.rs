//! Sequence pictures: each line is one that mermaid understands, and names parties that are declared. (A
//! semicolon ends a statement there, and what follows it breaks the whole picture.)

use std::collections::BTreeSet;

use crate::table::text_of;

const PLACE: &str = "docs/sequences.md";
const WORDS: &[&str] = &["alt ", "else ", "opt ", "loop ", "end", "Note over ", "participant "];

/// What is wrong with a picture, by line.
fn faults(picture: &str) -> Vec<String> {
    let declared: BTreeSet<_> = picture
        .lines()
        .filter_map(|line| line.trim().strip_prefix("participant ")?.split(' ').next())
        .collect();
    let mut faults = Vec::new();
    for line in picture.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.contains(';') {
            faults.push(format!("a semicolon ends the statement: {line}"));
        }
        let Some((ends, _)) = line.split_once(": ").filter(|_| line.contains(">>")) else {
            if !WORDS.iter().any(|word| line.starts_with(word)) {
                faults.push(format!("no statement: {line}"));
            }
            continue;
        };
        for party in ends.split("->>").map(|party| party.trim_end_matches('-').trim()) {
            if !declared.contains(party) {
                faults.push(format!("{party} is not declared: {line}"));
            }
        }
    }
    faults
}

#[test]
fn sequences_can_be_drawn() {
    let text = text_of(PLACE);
    let pictures: Vec<_> = text.split("```mermaid\nsequenceDiagram\n").skip(1).collect();
    assert!(pictures.len() >= 4, "{PLACE} has its pictures");
    for picture in pictures {
        let found = faults(picture.split("```").next().unwrap_or_default());
        assert!(found.is_empty(), "{PLACE}:\n  {}", found.join("\n  "));
    }
}

#[test]
fn what_mermaid_refuses_is_found() {
    let good =
        "    participant a as one\n    participant b\n    a->>b: do\n    b-->>a: done\n    opt x\n    end\n";
    assert_eq!(faults(good), [""; 0]);
    for bad in ["    a->>b: one; two\n", "    a->>c: do\n", "    do this\n"] {
        assert_eq!(faults(&format!("{good}{bad}")).len(), 1, "{bad}");
    }
}
