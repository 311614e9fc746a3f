//! The prose of a file: a document outside its blocks of code, the comments of a program.

use std::path::Path;

/// How a whole-line comment begins, by the extension of the file.
const HASH: &[&str] = &["toml", "sh", "yaml", "yml", "py"];

/// A line of prose.
pub(super) struct Line<'a> {
    pub(super) number: usize,
    /// With indentation and what is before the comment.
    pub(super) whole: &'a str,
    /// Without the mark of a comment.
    pub(super) words: &'a str,
}

/// The lines of prose in a file.
pub(super) fn lines<'a>(name: &Path, text: &'a str) -> Vec<Line<'a>> {
    let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let prose: fn(&str) -> Option<&str> = match extension {
        "md" => |line| Some(line),
        "rs" => rust_comment,
        hash if HASH.contains(&hash) => |line| line.trim_start().strip_prefix('#'),
        _ => return Vec::new(),
    };
    let mut in_code = false;
    let mut lines = Vec::new();
    for (number, whole) in (1..).zip(text.lines()) {
        let Some(words) = prose(whole) else {
            in_code = false;
            continue;
        };
        in_code ^= words.trim_start().starts_with("```");
        if !in_code && !is_indented_code(words) {
            lines.push(Line { number, whole, words });
        }
    }
    lines
}

/// The words of a comment, behind code too. Strings with `//` in them are addresses, which have no blank
/// before it.
fn rust_comment(line: &str) -> Option<&str> {
    let comment = line.trim_start();
    let words = match comment.strip_prefix("//") {
        Some(words) => words,
        None => comment.split_once("; // ").or_else(|| comment.split_once(", // "))?.1,
    };
    Some(words.strip_prefix(['/', '!']).unwrap_or(words))
}

/// Four blanks make a block of code, but not before the mark of a list.
fn is_indented_code(words: &str) -> bool {
    words.strip_prefix("    ").is_some_and(|code| !code.trim_start().starts_with(['*', '-']))
}
