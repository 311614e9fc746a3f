//! House rule: what a document points at is there. Links lead to files and headings, and a file that is named
//! in backticks exists.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

/// A name in backticks with one of these endings is a file of the repository.
const OURS: &[&str] = &["rs", "md", "toml", "sh"];

/// The tree that documents point into.
pub(super) struct Tree {
    root: PathBuf,
    /// Every file, relative to the root.
    files: Vec<PathBuf>,
}

impl Tree {
    pub(super) fn new(root: &Path, files: &[PathBuf]) -> Tree {
        let files = files.iter().filter_map(|file| Some(file.strip_prefix(root).ok()?.to_owned())).collect();
        Tree { root: root.to_owned(), files }
    }

    /// Every fault of a Markdown file, with the number of its line.
    pub(super) fn faults(&self, name: &Path, text: &str) -> Result<Vec<(usize, String)>> {
        let mut faults = Vec::new();
        if name.extension().is_none_or(|extension| extension != "md") {
            return Ok(faults);
        }
        let mut in_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            in_code ^= line.trim_start().starts_with("```");
            if in_code || line.starts_with("    ") {
                continue;
            }
            for target in links(line) {
                faults.extend(self.link_fault(name, text, target)?.map(|fault| (number, fault)));
            }
            for span in line.split('`').skip(1).step_by(2) {
                let (file, function) = span.split_once("::").unwrap_or((span, ""));
                if self.is_lost(file) {
                    faults.push((number, format!("`{file}` is no file of the repository")));
                } else if file.ends_with(".rs") && !function.is_empty() && !self.has_function(file, function)
                {
                    faults.push((number, format!("`{file}` has no function `{function}`")));
                }
            }
        }
        Ok(faults)
    }

    fn link_fault(&self, name: &Path, text: &str, target: &str) -> Result<Option<String>> {
        if target.contains("://") || target.starts_with("mailto:") {
            return Ok(None);
        }
        let (path, heading) = target.split_once('#').unwrap_or((target, ""));
        let place = normal(&name.parent().unwrap_or(Path::new("")).join(path));
        if !path.is_empty() && !self.root.join(&place).exists() {
            return Ok(Some(format!("the link leads to {path}, which is not there")));
        }
        if heading.is_empty() {
            return Ok(None);
        }
        let there = match path {
            "" => text.to_owned(),
            _ => std::fs::read_to_string(self.root.join(&place))
                .with_context(|| format!("cannot read {}", place.display()))?,
        };
        let found = there.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
        Ok((!found).then(|| format!("the link leads to the heading #{heading}, which is not there")))
    }

    /// Whether a file, a test for example, has the function that a document names.
    fn has_function(&self, file: &str, function: &str) -> bool {
        let path = self.files.iter().find(|known| known.ends_with(file));
        let text =
            path.and_then(|path| std::fs::read_to_string(self.root.join(path)).ok()).unwrap_or_default();
        text.contains(&format!("fn {function}("))
    }

    /// Whether the words in backticks are the name of a file that does not exist.
    fn is_lost(&self, span: &str) -> bool {
        let is_name = |c: char| c.is_alphanumeric() || "._-/".contains(c);
        if span.is_empty()
            || !span.chars().all(is_name)
            || span.starts_with(['/', '.', '-'])
            || span.starts_with("target/")
        {
            return false;
        }
        let path = Path::new(span.trim_end_matches('/'));
        if path.extension().and_then(|extension| extension.to_str()).is_some_and(|e| OURS.contains(&e)) {
            return !self.files.iter().any(|file| file.ends_with(path));
        }
        let in_folder_of_ours = path
            .components()
            .next()
            .is_some_and(|first| self.files.iter().any(|file| file.components().next() == Some(first)));
        span.contains('/') && in_folder_of_ours && !self.root.join(path).exists()
    }
}

/// The targets of a line's links: what stands in parentheses behind brackets.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, mark)| line[at + mark.len()..].split(')').next())
}

/// A path without `.` and `..`, as far as they can be resolved.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// The name that a heading has in links: small letters, hyphens for blanks, no other marks.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tree = Tree::new(root, &[root.join("src/main.rs"), root.join("src/tidy/links.rs")]);
        let faults = tree.faults(Path::new("src/notes.md"), text).unwrap();
        faults.into_iter().map(|(line, fault)| format!("{line}: {fault}")).collect()
    }

    #[test]
    fn what_is_there_is_no_fault() {
        let text = "# Two words, `code`\n[a](main.rs) [b](../Cargo.toml) [c](#two-words-code) [d](https://x.org/y.md)\n\
                    `links.rs` `tidy/links.rs` `src/tidy/` `.rs` `/etc/x.toml` `a b.rs` `target/x/report.md`\n";
        assert_eq!(faults(text), [""; 0]);
    }

    #[test]
    fn what_is_not_there_is_one() {
        assert_eq!(faults("\n[a](old.rs)"), ["2: the link leads to old.rs, which is not there"]);
        assert_eq!(faults("[a](#old)"), ["1: the link leads to the heading #old, which is not there"]);
        assert_eq!(faults("[a](main.rs#old)"), ["1: the link leads to the heading #old, which is not there"]);
        assert_eq!(faults("see `inks.rs`"), ["1: `inks.rs` is no file of the repository"]);
        assert_eq!(faults("see `main.rs::mein`"), ["1: `main.rs` has no function `mein`"]);
        assert_eq!(faults("see `main.rs::main`"), [""; 0]);
        assert_eq!(faults("see `src/old/`"), ["1: `src/old/` is no file of the repository"]);
    }

    #[test]
    fn code_is_not_looked_at() {
        assert_eq!(faults("```\n[a](old.rs) `old.rs`\n```\n    `old.rs`\n"), [""; 0]);
    }
}
