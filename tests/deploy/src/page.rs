//! The pages docs/install.md and docs/migrate.md, as tests read them: marked blocks, and what command lines
//! set.

use std::fs;

use serde_json::{Value, json};

use crate::helm::root;

/// The text of a page.
pub fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the page")
}

/// The lines of blocks with this mark, block by block.
pub fn blocks(text: &str, mark: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == format!("```{mark}") {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The values that a command line sets, as Helm reads them: dots lead inside, and a dot behind a backslash
/// does not.
pub fn values(command: &str) -> Value {
    let mut values = json!({});
    let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    for pair in words.windows(2).filter(|pair| ["--set", "--set-string"].contains(&pair[0])) {
        let (path, value) = pair[1].split_once('=').expect("a value");
        let value = match value {
            "true" | "false" if pair[0] == "--set" => json!(value == "true"),
            text => json!(text),
        };
        let path = path.replace("\\.", "\0");
        let mut place = &mut values;
        for name in path.split('.') {
            place = &mut place[name.replace('\0', ".")];
        }
        *place = value;
    }
    values
}

/// The rows of the table behind a mark, cell by cell, without its heading.
pub fn rows(text: &str, mark: &str) -> Vec<Vec<String>> {
    let behind = text.split_once(mark).map_or("", |(_, behind)| behind);
    let table =
        behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    table.skip(2).map(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_helm_reads_them() {
        let set = values("helm install x --set a.b=true --set c=1 --set-string 'd.e\\.f/g=true'");
        assert_eq!(set, json!({ "a": { "b": true }, "c": "1", "d": { "e.f/g": "true" } }));
    }

    #[test]
    fn a_table_is_found_by_its_mark() {
        let text = "| no |\n<!-- it -->\n\n| a | b |\n|---|---|\n| `x y` | 1 |\n\n| z |\n";
        assert_eq!(rows(text, "<!-- it -->"), [["`x y`", "1"]]);
        assert!(rows(text, "<!-- other -->").is_empty());
    }
}
