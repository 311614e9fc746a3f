//! Completions and manual pages: each subcommand is in them.

use std::fs;
use std::process::Command;

use harness::binary;

/// The subcommands that `--help` lists.
fn subcommands() -> Vec<String> {
    let output = Command::new(binary("redirect")).arg("--help").output().expect("the tool starts");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_a_manual_page_and_completions() {
    let folder = tempfile::tempdir().expect("make a directory");
    let status = Command::new(binary("redirect")).arg("generate").arg(folder.path()).status();
    assert!(status.expect("the tool starts").success());
    let commands = subcommands();
    assert!(commands.len() > 10 && commands.contains(&"verify".to_owned()), "{commands:?}");
    for name in commands.iter().filter(|name| *name != "help") {
        let page = folder.path().join(format!("man/redirect-{name}.1"));
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH NAME"), "{name}: {text}");
        for file in ["redirect.bash", "_redirect", "redirect.fish"] {
            let text =
                fs::read_to_string(folder.path().join("completions").join(file)).expect("a completion file");
            assert!(text.contains(name.as_str()), "{file} does not know {name}");
        }
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, mark) in
        [("bash", "complete -F"), ("zsh", "#compdef redirect"), ("fish", "complete -c redirect")]
    {
        let output =
            Command::new(binary("redirect")).args(["completions", shell]).output().expect("the tool starts");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success() && text.contains(mark), "{shell}: {text}");
    }
}
