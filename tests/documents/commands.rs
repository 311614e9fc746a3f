//! Commands in documents: each names a subcommand and options that its program has, and the tool's README has
//! all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::binary;

use crate::table::{assert_same, column, rows, section};

/// What a program prints about itself.
fn help(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(binary(program)).args(arguments).arg("--help").output().expect("the program starts");
    assert!(output.status.success(), "{program} {arguments:?} --help: {output:?}");
    String::from_utf8(output.stdout).expect("help is text")
}

/// The subcommands that a program's help lists.
pub(crate) fn subcommands(program: &str) -> BTreeSet<String> {
    let help = help(program, &[]);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_subcommand_of_the_tool_is_documented() {
    let table = rows(&section("tool/README.md", "## Subcommands"));
    let word = |command: String| command.split_whitespace().nth(1).map(str::to_owned);
    let documented = column(&table, 0).into_iter().filter_map(word).collect();
    assert_same("the table of subcommands in tool/README.md", &documented, &subcommands("redirect"));
}

/// Every Markdown file of the repository.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("list a folder").flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.') && !path.ends_with(".github");
        if path.is_dir() && !hidden && entry.file_name() != "target" && !path.is_symlink() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Commands in code: lines of blocks and spans that begin with the words of a program.
fn commands_in<'a>(text: &'a str, program: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let code = line.trim_start().trim_start_matches("$ ").trim_start_matches("sudo ");
        let is_block = fenced || line.starts_with("    ");
        let spans = line.split('`').skip(1).step_by(2).filter(|_| !is_block);
        found.extend(spans.chain(is_block.then_some(code)).filter_map(|code| code.strip_prefix(program)));
    }
    found
}

/// What follows the name of a program is a subcommand of it, and its options are options of that.
fn check(
    program: &str,
    spoken: &str,
    place: &Path,
    text: &str,
    known: &mut BTreeMap<String, String>,
) -> Vec<String> {
    let mut faults = Vec::new();
    for command in commands_in(text, spoken) {
        // What stands behind two blanks or a mark explains the command.
        let command = command
            .split("  ")
            .next()
            .unwrap_or(command)
            .split(['#', '|', '>', '<', ';'])
            .next()
            .unwrap_or("");
        let mut words = command.split_whitespace();
        let Some(verb) = words.find(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) else {
            continue;
        };
        if !subcommands(program).contains(verb) {
            faults.push(format!("{}: {spoken}{command}: there is no subcommand {verb}", place.display()));
            continue;
        }
        let help = known.entry(verb.to_owned()).or_insert_with(|| help(program, &[verb]));
        let options =
            words.take_while(|word| *word != "--").map(|word| word.trim_matches(['[', ']', '.', ',']));
        for option in options.filter(|word| word.starts_with("--")) {
            let name = option.split(['=', ']', '.']).next().unwrap_or(option);
            if !help.contains(name) {
                faults.push(format!("{}: {spoken}{command}: {verb} has no option {name}", place.display()));
            }
        }
    }
    faults
}

#[test]
fn every_command_in_a_document_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    let mut files = Vec::new();
    documents(root, &mut files);
    assert!(files.len() > 5, "the documents are found: {files:?}");
    let (mut tool, mut xtask) = (BTreeMap::new(), BTreeMap::new());
    let mut faults = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("read a document");
        let place = file.strip_prefix(root).unwrap_or(&file);
        faults.extend(check("redirect", "redirect ", place, &text, &mut tool));
        faults.extend(check("xtask", "cargo xtask ", place, &text, &mut xtask));
    }
    assert!(tool.len() > 3 && xtask.len() > 3, "commands are found: {tool:?}, {xtask:?}");
    assert!(faults.is_empty(), "commands in documents that do not exist:\n  {}", faults.join("\n  "));
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    let text =
        "    redirect lst\n\nor `redirect list --colour` and `redirect show ID`, prose: redirect nothing\n";
    let faults = check("redirect", "redirect ", Path::new("a.md"), text, &mut BTreeMap::new());
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults[0].contains("no subcommand lst") && faults[1].contains("no option --colour"),
        "{faults:?}"
    );
}
