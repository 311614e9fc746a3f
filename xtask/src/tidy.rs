//! `cargo xtask tidy`: house rules that neither the compiler nor clippy knows.

mod circles;
mod links;
mod plugin;
mod prose;
mod targets;
mod width;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// What every file here is read as; others (images, lock files, licences) are left alone.
const TEXT: &[&str] = &["rs", "toml", "md", "sh", "yaml", "yml", "json", "proto", "py"];
/// Folders that hold nothing of ours.
const SKIPPED: &[&str] = &["target", ".git"];
/// A file that outgrows this should be two.
const MOST_LINES: usize = 500;
/// Notes of work left undone, split here so that this file keeps its own rule.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];
/// Places that exist on one machine only, split for the same reason.
const PRIVATE: &[&str] = &[concat!("/ro", "ot/"), concat!("/wo", "rk/")];
/// Licence texts that must be there for what the crates' manifests name.
const LICENCES: &[&str] = &["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL-2.0"];

/// Checks the whole repository and lists every fault.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut faults: Vec<String> = LICENCES
        .iter()
        .filter(|name| !workspace.root.join(name).exists())
        .map(|name| format!("{name}: this licence text is missing"))
        .collect();
    let files = files(&workspace.root)?;
    let tree = links::Tree::new(&workspace.root, &files);
    let mut rust = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&workspace.root).unwrap_or(path);
        faults.extend(faults_of(name, &text));
        let untargeted = targets::fault(&workspace.root, name);
        faults.extend(untargeted.map(|fault| format!("{}: {fault}", name.display())));
        let lost = tree.faults(name, &text)?.into_iter();
        faults.extend(lost.map(|(number, fault)| format!("{}:{number}: {fault}", name.display())));
        if name.extension().is_some_and(|extension| extension == "rs") {
            rust.push((name.to_path_buf(), text));
        }
    }
    faults.extend(circles::faults(&rust)?);
    faults.extend(plugin::faults(workspace)?);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the tree is not tidy:\n  {}", faults.join("\n  "))
}

/// The text files below a folder, in order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let is = |names: &[&str], part: Option<&std::ffi::OsStr>| {
            part.and_then(|part| part.to_str()).is_some_and(|part| names.contains(&part))
        };
        if path.is_symlink() || is(SKIPPED, path.file_name()) {
            continue;
        } else if path.is_dir() {
            found.extend(files(&path)?);
        } else if is(TEXT, path.extension()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Every fault of one file, each with the place and what to do.
fn faults_of(name: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let is_rust = name.extension().is_some_and(|extension| extension == "rs");
    if is_rust && !text.starts_with("//! ") {
        faults.push(format!(
            "{}:1: begin the file with a //! paragraph that says what it is for",
            name.display()
        ));
    }
    let lines = text.lines().count();
    if is_rust && lines >= MOST_LINES {
        faults.push(format!("{}: {lines} lines: split it, the limit is {MOST_LINES}", name.display()));
    }
    for (number, line) in (1..).zip(text.lines()) {
        faults.extend(fault_of(line).map(|fault| format!("{}:{number}: {fault}", name.display())));
    }
    let prose = width::faults(name, text).into_iter().chain(words::faults(name, text));
    faults.extend(prose.map(|(number, fault)| format!("{}:{number}: {fault}", name.display())));
    faults
}

fn fault_of(line: &str) -> Option<String> {
    if line.ends_with([' ', '\t']) {
        return Some("blanks at the end of the line".into());
    }
    if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
        return Some(format!("{mark}: finish it, or say in an issue what is left"));
    }
    let path = PRIVATE.iter().find(|path| names_place(line, path))?;
    Some(format!("{path} is a path of one machine"))
}

/// Whether an absolute path begins here, and not the middle of another one.
fn names_place(line: &str, place: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || "._-}/~*".contains(c);
    line.match_indices(place).any(|(at, _)| !line[..at].ends_with(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, text: &str) -> Vec<String> {
        faults_of(Path::new(name), text)
    }

    #[test]
    fn a_good_file_has_no_fault() {
        assert_eq!(faults("a.rs", "//! Does one thing.\n\nfn main() {}\n"), [""; 0]);
    }

    #[test]
    fn every_rule_finds_its_fault() {
        assert!(faults("a.rs", "fn main() {}\n")[0].starts_with("a.rs:1: begin the file"));
        assert_eq!(faults("a.md", "one\ntwo \n"), ["a.md:2: blanks at the end of the line"]);
        for mark in UNFINISHED {
            assert!(
                faults("a.sh", &format!("# {mark}"))[0].starts_with(&format!("a.sh:1: {mark}")),
                "{mark}"
            );
        }
        for place in PRIVATE {
            assert_eq!(faults("a.toml", &format!("path = \"{place}x\"")).len(), 1, "{place}");
        }
        let wide = format!("words {}", "and words ".repeat(20).trim_end());
        assert_eq!(faults("a.md", &wide), ["a.md:1: 205 columns: wrap it at 110"]);
        let long = format!("//! Long.\n{}", "\n".repeat(MOST_LINES));
        assert_eq!(faults("a.rs", &long), [format!("a.rs: 501 lines: split it, the limit is {MOST_LINES}")]);
    }

    #[test]
    fn a_longer_path_is_not_one_of_a_machine() {
        let inside = format!("see target{}notes and ${{base}}{}x", PRIVATE[1], PRIVATE[0]);
        assert_eq!(faults("a.md", &inside), [""; 0]);
    }
}
