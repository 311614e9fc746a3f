//! House rule: the files of a crate form no circle. A reader can then begin with a file that needs no other
//! one, and a part can move without the rest.
//!
//! A file needs another one when a path in it ends at an item that is defined there. Re-exports are followed
//! to the definition, and are no need themselves. Tests inside of a file are left out.

mod source;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use source::Source;

/// A module that is a file of its own.
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    /// The modules that it declares, with their places in the list of all.
    children: BTreeMap<String, usize>,
    source: Source,
}

/// For each file the files that it needs, and the names that it takes from each.
type Needs = BTreeMap<usize, BTreeMap<usize, BTreeSet<String>>>;

/// Every circle between the Rust files, which are given with their text.
pub(super) fn faults(files: &[(PathBuf, String)]) -> Result<Vec<String>> {
    let modules = modules(files)?;
    let needs: Needs = (0..modules.len()).map(|module| (module, needs(&modules, module))).collect();
    let mut seen = BTreeSet::new();
    let circles = (0..modules.len()).filter_map(|module| circle(&needs, module));
    let new = circles.filter(|circle| seen.insert(circle.iter().copied().collect::<BTreeSet<_>>()));
    Ok(new.map(|circle| tell(&modules, &needs, &circle)).collect())
}

fn modules(files: &[(PathBuf, String)]) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    for (file, text) in files {
        let source = Source::read(text).map_err(|error| anyhow!("{error}"));
        let source = source.with_context(|| format!("cannot read {} as Rust", file.display()))?;
        modules.push(Module { file: file.clone(), parent: None, children: BTreeMap::new(), source });
    }
    let places: BTreeMap<_, _> = files.iter().enumerate().map(|(place, (file, _))| (file, place)).collect();
    for parent in 0..modules.len() {
        for name in modules[parent].source.declared.clone() {
            let found =
                candidates(&modules[parent].file, &name).into_iter().find_map(|file| places.get(&file));
            if let Some(&child) = found {
                modules[child].parent = Some(parent);
                modules[parent].children.insert(name, child);
            }
        }
    }
    Ok(modules)
}

/// Where a module lies that this file declares. Beside it, if the file is the root of a crate.
fn candidates(file: &Path, name: &str) -> Vec<PathBuf> {
    let below = file.with_extension("");
    let beside = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let folders = [below, beside].into_iter();
    folders.flat_map(|folder| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")]).collect()
}

/// The other files that one file takes items from.
fn needs(modules: &[Module], from: usize) -> BTreeMap<usize, BTreeSet<String>> {
    let mut needs: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for path in &modules[from].source.named {
        if let Some((to, Some(item))) = resolve(modules, from, path, 0)
            && to != from
        {
            needs.entry(to).or_default().insert(item);
        }
    }
    needs
}

/// The file where a path ends, and the item in it; no item if the path names the module itself. `None` for
/// paths into other crates.
fn resolve(
    modules: &[Module],
    from: usize,
    path: &[String],
    depth: usize,
) -> Option<(usize, Option<String>)> {
    let (first, rest) = path.split_first()?;
    let module = match first.as_str() {
        "crate" => root(modules, from),
        "super" => modules[from].parent?,
        "self" => from,
        _ => return step(modules, from, path, depth),
    };
    match rest.first() {
        None => Some((module, None)),
        Some(next) if next == "super" => resolve(modules, module, rest, depth),
        Some(_) => step(modules, module, rest, depth).or(Some((module, rest.first().cloned()))),
    }
}

/// Follows a path whose first name stands in this module: a child, what a `use` brought in, or what is
/// defined.
fn step(modules: &[Module], at: usize, path: &[String], depth: usize) -> Option<(usize, Option<String>)> {
    let (first, rest) = path.split_first()?;
    // A `use` may lead to itself: `use serde::{self}`.
    if depth > 20 {
        return None;
    }
    let Module { children, source, .. } = &modules[at];
    if let Some(&child) = children.get(first) {
        return if rest.is_empty() {
            Some((child, None))
        } else {
            step(modules, child, rest, depth + 1).or(Some((child, rest.first().cloned())))
        };
    }
    if let Some(bound) = source.bound.get(first) {
        let whole: Vec<_> = bound.iter().chain(rest).cloned().collect();
        return resolve(modules, at, &whole, depth + 1);
    }
    if source.declared.contains(first) {
        // Its file is elsewhere: `#[path]`.
        return Some((at, None));
    }
    if source.defined.contains(first) {
        return Some((at, Some(first.clone())));
    }
    source.globs.iter().find_map(|glob| {
        let (module, item) = resolve(modules, at, glob, depth + 1)?;
        if item.is_some() || module == at { None } else { step(modules, module, path, depth + 1) }
    })
}

fn root(modules: &[Module], mut module: usize) -> usize {
    while let Some(parent) = modules[module].parent {
        module = parent;
    }
    module
}

/// The shortest way from a file back to itself.
fn circle(needs: &Needs, start: usize) -> Option<Vec<usize>> {
    let mut before = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(from) = queue.pop_front() {
        for &to in needs[&from].keys() {
            if to == start {
                let mut way = vec![from];
                while let Some(&earlier) = before.get(way.last()?) {
                    way.push(earlier);
                }
                way.reverse();
                return Some(way);
            }
            if let Entry::Vacant(first) = before.entry(to) {
                first.insert(from);
                queue.push_back(to);
            }
        }
    }
    None
}

fn tell(modules: &[Module], needs: &Needs, circle: &[usize]) -> String {
    let next = circle.iter().cycle().skip(1);
    let arrows = circle.iter().zip(next).map(|(from, to)| {
        let names: Vec<_> = needs[from][to].iter().map(String::as_str).collect();
        format!("\n    -> {} ({})", modules[*to].file.display(), names.join(", "))
    });
    let first = modules[circle[0]].file.display();
    format!(
        "{first}: needs itself; move what both sides use into a file of its own{}",
        arrows.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(file, text)| (file.into(), (*text).to_owned())).collect();
        faults(&files).unwrap()
    }

    #[test]
    fn a_circle_of_siblings_is_named_with_what_ties_it() {
        let circle = of(&[
            ("x/src/lib.rs", "mod a; mod b; mod c; pub use a::A;"),
            ("x/src/a.rs", "use crate::b::{self, B}; pub struct A(B);"),
            ("x/src/b.rs", "pub struct B; fn f() { super::c::g(); }"),
            ("x/src/c.rs", "pub fn g() { println!(\"{}\", crate::A::new()) }"),
        ]);
        let way = "-> x/src/b.rs (B)\n    -> x/src/c.rs (g)\n    -> x/src/a.rs (A)";
        assert_eq!(circle.len(), 1, "{circle:?}");
        assert!(circle[0].starts_with("x/src/a.rs: needs itself") && circle[0].ends_with(way), "{circle:?}");
    }

    #[test]
    fn a_child_that_uses_its_parents_item_is_a_circle_if_the_parent_uses_the_child() {
        let child = ("x/src/a/b.rs", "use super::Shared; pub fn b(_: Shared) {}");
        let root = ("x/src/main.rs", "mod a;");
        assert_eq!(
            of(&[root, ("x/src/a.rs", "mod b; struct Shared; fn f() { b::b(Shared) }"), child]).len(),
            1
        );
        assert_eq!(of(&[root, ("x/src/a.rs", "mod b; pub use b::b; pub struct Shared;"), child]), [""; 0]);
    }

    #[test]
    fn tests_comments_and_re_exports_tie_nothing() {
        let files = [
            ("x/src/lib.rs", "pub mod a; pub mod b; pub use b::*;"),
            ("x/src/a.rs", "use crate::B; pub struct A(B); // crate::b\nmod inner { use super::B; }"),
            (
                "x/src/b.rs",
                "pub struct B; /// [`crate::a::A`]\n fn f() { \"crate::a::A\"; }
                #[cfg(test)] mod tests { use crate::a::A; }",
            ),
        ];
        assert_eq!(of(&files), [""; 0]);
    }
}
