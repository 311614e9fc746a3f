//! House rule: prose and comments end at column 110, so that two files fit beside each other and a difference
//! is readable. Code is rustfmt's; tables and blocks of code are left as they are.

use std::path::Path;

use super::prose;

/// The last column; rustfmt.toml has the same number for code.
const WIDTH: usize = 110;

/// Every line of prose that is too long, with its number.
pub(super) fn faults(name: &Path, text: &str) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for line in prose::lines(name, text) {
        let columns = line.whole.chars().count();
        if columns > WIDTH && can_be_wrapped(line.words) {
            faults.push((line.number, format!("{columns} columns: wrap it at {WIDTH}")));
        }
    }
    faults
}

/// Not a table's row, and more than one word.
fn can_be_wrapped(words: &str) -> bool {
    !words.trim_start().starts_with('|') && words.split_whitespace().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_at_fault(name: &str, text: &str) -> Vec<usize> {
        faults(Path::new(name), text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_line_at_the_limit_is_good_and_one_beyond_it_is_not() {
        for (name, mark) in
            [("a.md", ""), ("a.rs", "//! "), ("a.rs", "    // "), ("a.sh", "# "), ("a.yml", "  # ")]
        {
            let words = "é ".repeat(WIDTH);
            let exactly: String = format!("{mark}{words}").chars().take(WIDTH - 1).chain(['x']).collect();
            assert_eq!(lines_at_fault(name, &exactly), [0; 0], "{name} {mark}");
            assert_eq!(lines_at_fault(name, &format!("{mark}\n{exactly}y")), [2], "{name} {mark}");
        }
    }

    #[test]
    fn a_comment_behind_code_counts_and_code_does_not() {
        let long = "word ".repeat(WIDTH);
        assert_eq!(lines_at_fault("a.rs", &format!("let a = 1; // {long}")), [1]);
        assert_eq!(lines_at_fault("a.rs", &format!("let a = \"{long} see //x\";")), [0; 0]);
        assert_eq!(lines_at_fault("a.json", &long), [0; 0]);
    }

    #[test]
    fn tables_code_and_single_words_stay_as_they_are() {
        let long = "word ".repeat(WIDTH);
        for kept in
            [format!("| {long} |"), format!("    {long}"), "x".repeat(200), format!("```\n{long}\n```")]
        {
            assert_eq!(lines_at_fault("a.md", &kept), [0; 0], "{kept}");
        }
        assert_eq!(lines_at_fault("a.md", &format!("```\n```\n{long}")), [3]);
        assert_eq!(lines_at_fault("a.md", &format!("    * {long}")), [1]);
        // A block of code ends with its comment.
        assert_eq!(lines_at_fault("a.rs", &format!("/// ```\nfn f() {{}}\n/// {long}")), [3]);
    }
}
