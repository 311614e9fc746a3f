//! What `--help` prints of each subcommand, held against files. `HELP=write` writes them again.

use std::path::Path;
use std::process::Command;

use harness::binary;

fn help(arguments: &[&str]) -> String {
    let output =
        Command::new(binary("redirect")).args(arguments).arg("--help").env("COLUMNS", "100").output();
    let output = output.expect("the tool starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The subcommands that a help lists.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn every_help_is_what_its_file_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tool/help");
    let top = help(&[]);
    let mut texts = vec![("redirect".to_owned(), top.clone())];
    for name in listed(&top) {
        let text = help(&[&name]);
        for below in listed(&text) {
            texts.push((format!("{name}-{below}"), help(&[&name, &below])));
        }
        texts.push((name, text));
    }
    let mut faults = Vec::new();
    for (name, text) in &texts {
        let file = folder.join(format!("{name}.txt"));
        if std::env::var_os("HELP").is_some_and(|value| value == "write") {
            std::fs::create_dir_all(&folder).expect("make the folder");
            std::fs::write(&file, text).expect("write a file");
        } else if std::fs::read_to_string(&file).ok().as_ref() != Some(text) {
            faults.push(name.clone());
        }
    }
    let files = std::fs::read_dir(&folder).expect("the folder").count();
    assert_eq!(files, texts.len(), "a file of a subcommand that is gone stays in {}", folder.display());
    assert!(
        faults.is_empty(),
        "the help of {faults:?} is not what tests/tool/help has: if that is meant, HELP=write cargo test --test tool \
         help writes the files again"
    );
}
