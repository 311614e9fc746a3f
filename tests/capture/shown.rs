//! The commands that documents show are run here, and print what is shown.
//!
//! A block that is marked `console` has commands behind `$ ` and below each what it prints. They run in order
//! on a node with one enrolled pod, with the tool and the plugin of this build. Numbers that differ from run
//! to run (ids, times, counts of the machine's own) are compared by their places only. `SHOWN=print` in the
//! environment prints what is really printed.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::cli::Outcome;
use harness::{Node, binary, kernel_test};

/// Documents that must have such blocks; all others may.
const DOCUMENTS: &[&str] = &["README.md", "cni/README.md", "tool/README.md", "docs/operate.md"];

/// A command and what the document says it prints.
struct Shown {
    document: String,
    command: String,
    output: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package")
}

/// Every document of the repository: Markdown in a folder, and in those below that are not hidden or built.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("list a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !path.is_symlink() && name != "target" && !name.to_string_lossy().starts_with('.')
        {
            found.extend(documents(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn shown_in(document: &Path) -> Vec<Shown> {
    let text = std::fs::read_to_string(document).expect("read a document");
    let name = document.strip_prefix(root()).unwrap_or(document).display().to_string();
    let mut shown: Vec<Shown> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap_or_default().lines() {
            match (line.strip_prefix("$ "), shown.last_mut()) {
                (Some(command), _) => shown.push(Shown {
                    document: name.clone(),
                    command: command.to_owned(),
                    output: String::new(),
                }),
                (None, Some(last)) => last.output += &format!("{line}\n"),
                (None, None) => panic!("{name}: a console block begins with a command: {line}"),
            }
        }
    }
    shown
}

/// Runs a shown command in a shell that finds our programs and the folders of this node; all that it prints.
fn run(node: &Node, command: &str) -> String {
    let programs = binary("redirect-cni");
    let folder = programs.parent().expect("a program is in a folder").display();
    let (bpffs, state) = (node.bpffs().to_owned(), node.state_dir());
    let (bpffs, state) = (bpffs.display(), state.display());
    let script = format!(
        "PATH={folder}:$PATH; redirect() {{ command redirect --bpffs {bpffs} --state-dir {state} \"$@\"; }}; \
         exec 2>&1; {command}"
    );
    Outcome::of(Command::new("sh").arg("-c").arg(script).current_dir(node.dir())).stdout
}

/// Lines with one blank between words, and `N` for ids.
fn comparable(text: &str) -> Vec<String> {
    let is_id = |word: &str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_digit());
    let word = |word| if is_id(word) { "N" } else { word };
    text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn commands_in_documents_print_what_is_shown() {
    kernel_test(|node| {
        let pod = node.pod("web-0");
        node.attach(&pod, &["--exclude-outbound-ports", "3306"]);
        let _sidecar = pod.sidecar();
        pod.app().connect("10.0.0.7:80".parse().unwrap()).unwrap();
        for Shown { document, command, output } in documents(root()).iter().flat_map(|path| shown_in(path)) {
            let real = run(node, &command);
            if std::env::var_os("SHOWN").is_some_and(|value| value == "print") {
                println!("{document}\n$ {command}\n{real}");
                continue;
            }
            assert_eq!(
                comparable(&output),
                comparable(&real),
                "{document}: `{command}` shows (left) what it does not print (right); it prints:\n{real}"
            );
        }
    });
}

#[test]
fn every_document_shows_a_command() {
    for document in DOCUMENTS {
        assert!(!shown_in(&root().join(document)).is_empty(), "{document} has no block of commands");
    }
}
