//! House rule: the modules of a crate use each other in one direction, so that a reader can begin somewhere.
//!
//! It is counted from the paths that files write: `use crate::..`, `use super::..`, and those in the middle
//! of code. A folder's own file (`attach.rs` for `attach/`) and the files in the folder count as one room:
//! what they use of each other is not looked at. Tests at the end of a file may use anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// A module by its path in the crate; the crate's root has none.
type Module = Vec<String>;

/// The modules of one crate, and what each uses of the others.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Module, BTreeSet<Module>>,
}

/// One fault for every circle. `files` are names from the workspace's root, with their texts.
pub(super) fn faults(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut crates: BTreeMap<PathBuf, Vec<(Module, &str)>> = BTreeMap::new();
    for (name, text) in files {
        if let Some((root, module)) = place(name) {
            crates.entry(root).or_default().push((module, text));
        }
    }
    let circles = crates.iter().flat_map(|(root, files)| {
        let shown = root.display().to_string();
        Crate::new(files).circles().into_iter().map(move |circle| {
            let way: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            format!("{shown}: modules use each other in a circle: {}", way.join(" > "))
        })
    });
    circles.collect()
}

/// The crate's folder and the module of a source file; none for files outside of a `src` folder.
fn place(name: &Path) -> Option<(PathBuf, Module)> {
    if name.extension().is_none_or(|extension| extension != "rs") {
        return None;
    }
    let stem = name.with_extension("");
    let parts: Vec<&str> = stem.iter().filter_map(|part| part.to_str()).collect();
    let src = parts.iter().position(|part| *part == "src")?;
    let mut module: Module = parts[src + 1..].iter().map(|part| (*part).to_owned()).collect();
    if module.len() == 1 && ["main", "lib"].contains(&module[0].as_str()) {
        module.clear();
    }
    module.pop_if(|last| last == "mod");
    Some((parts[..src].iter().collect(), module))
}

impl Crate {
    fn new(files: &[(Module, &str)]) -> Crate {
        let all: BTreeSet<Module> = files.iter().map(|(module, _)| module.clone()).collect();
        let uses = |module: &Module, text: &str| {
            let found = paths(&code(text)).into_iter().filter_map(|path| resolve(module, &path, &all));
            found.filter(|used| !used.starts_with(module) && !module.starts_with(used)).collect()
        };
        Crate { modules: files.iter().map(|(module, text)| (module.clone(), uses(module, text))).collect() }
    }

    /// A shortest circle through each module that is in one and in no circle before it.
    fn circles(&self) -> Vec<Vec<Module>> {
        let mut found: Vec<Vec<Module>> = Vec::new();
        for module in self.modules.keys() {
            if found.iter().any(|circle| circle.contains(module)) {
                continue;
            }
            found.extend(self.way(module, module));
        }
        found
    }

    /// The shortest way from one module to another, both at its ends.
    fn way(&self, from: &Module, to: &Module) -> Option<Vec<Module>> {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut next = VecDeque::from([from]);
        while let Some(at) = next.pop_front() {
            for used in self.modules.get(at).into_iter().flatten() {
                if before.contains_key(used) {
                    continue;
                }
                before.insert(used, at);
                if used == to {
                    let mut way = vec![to.clone()];
                    let mut at = before[to];
                    while at != from {
                        way.push(at.clone());
                        at = before[at];
                    }
                    way.push(from.clone());
                    way.reverse();
                    return Some(way);
                }
                next.push_back(used);
            }
        }
        None
    }
}

/// A text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that begins with `crate`, `super` or `self`; those of a `use` with braces one by one.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let inside = |c: char| c.is_alphanumeric() || "_:$".contains(c);
            if !code[..at].ends_with(inside) {
                tree(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Reads one path, or a tree of them; returns how many bytes that took.
fn tree(code: &str, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let blanks = |at: usize| at + code[at..].len() - code[at..].trim_start().len();
    let mut path = prefix.to_vec();
    let mut at = 0;
    loop {
        at = blanks(at);
        if code[at..].starts_with('{') {
            at += 1;
            while !code[at..].is_empty() {
                at = blanks(at);
                if code[at..].starts_with('}') {
                    return at + 1;
                }
                let taken = tree(&code[at..], &path, found);
                // A comma, or what ends the name of an alias.
                at += taken.max(1);
            }
            return at;
        }
        let word: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        at += word.len();
        if !word.is_empty() {
            path.push(word);
        }
        if !code[at..].starts_with("::") {
            found.push(path);
            return at;
        }
        at += 2;
    }
}

/// The module that a path leads into.
fn resolve(from: &Module, path: &[String], all: &BTreeSet<Module>) -> Option<Module> {
    let mut base = if path[0] == "crate" { Vec::new() } else { from.clone() };
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => drop(base.pop()),
            "crate" | "self" => {}
            _ => break,
        }
        rest = others;
    }
    base.extend(rest.iter().cloned());
    (0..=base.len()).rev().map(|length| base[..length].to_vec()).find(|module| all.contains(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        faults(&files.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn a_circle_is_found_by_use_by_braces_and_in_the_middle_of_code() {
        for back in
            ["use crate::a::Thing;", "use crate::{c, a::{Thing, Other}};", "fn f() { super::a::thing() }", "pub use self::a;\nuse super::a as b;"]
        {
            let files = [("x/src/lib.rs", ""), ("x/src/a.rs", "use crate::b;"), ("x/src/b.rs", back), ("x/src/c.rs", "")];
            assert_eq!(found(&files), ["x: modules use each other in a circle: a > b > a"], "{back}");
        }
        let three = [("x/src/a.rs", "use crate::b;"), ("x/src/b.rs", "use crate::c;"), ("x/src/c.rs", "use crate::a;")];
        assert_eq!(found(&three), ["x: modules use each other in a circle: a > b > c > a"]);
    }

    #[test]
    fn a_folder_is_one_room_and_comments_and_tests_do_not_count() {
        let files = [
            ("x/src/main.rs", "use crate::a;"),
            ("x/src/a.rs", "use self::b::Thing;\n// use crate::c;\n#[cfg(test)]\nmod tests { use crate::c; }"),
            ("x/src/a/b.rs", "use super::Other; use crate::a::Else;"),
            ("x/src/c.rs", "use crate::a;"),
            ("y/src/a.rs", "use crate::c;"),
        ];
        assert_eq!(found(&files), [""; 0]);
        let inside = [("x/src/a/b.rs", "use super::c;"), ("x/src/a/c.rs", "use crate::a::b::Thing;")];
        assert_eq!(found(&inside), ["x: modules use each other in a circle: a::b > a::c > a::b"]);
    }
}
