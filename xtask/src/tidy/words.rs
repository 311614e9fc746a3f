//! House rule: plain words. These have a plainer one, and a reader whose first language is another stumbles
//! over them.

use std::path::Path;

use super::prose;

/// What not to write, and what to write.
const PLAINER: &[(&str, &str)] = &[
    ("nobody", "name who does not: no process, no plugin, no operator"),
    ("whatever", "what, every, or in all cases"),
    ("anew", "again"),
    ("whom", "turn the sentence round: who, which, where"),
    ("be had", "available, taken, found"),
];

/// Every word that has a plainer one, with its line.
pub(super) fn faults(name: &Path, text: &str) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for line in prose::lines(name, text) {
        let words = line.words.to_lowercase();
        for (word, instead) in PLAINER.iter().filter(|(word, _)| has_word(&words, word)) {
            faults.push((line.number, format!("`{word}`: write in plain words ({instead})")));
        }
    }
    faults
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        [before, after].into_iter().flatten().all(|c| !c.is_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_found_in_prose_and_left_alone_elsewhere() {
        for (word, _) in PLAINER {
            for (name, mark) in [("a.md", ""), ("a.rs", "//! "), ("a.sh", "# ")] {
                assert_eq!(
                    faults(Path::new(name), &format!("{mark}One\n{mark}says {word}.")).len(),
                    1,
                    "{word}"
                );
            }
            assert!(faults(Path::new("a.rs"), &format!("let a = \"{word}\";")).is_empty());
            assert!(faults(Path::new("a.md"), &format!("    {word}\n\nx{word}x")).is_empty());
        }
    }
}
