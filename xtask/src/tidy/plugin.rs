//! House rule: the plugin carries only what it needs. It is read from disk and started for every pod, so no
//! runtime for tasks, no client for HTTP and no parser for command lines may come in through a library that
//! it uses.

use anyhow::{Context, Result};

use crate::cmd;
use crate::workspace::Workspace;

/// The plugin's package.
const PLUGIN: &str = "redirect-cni";
/// What must not be among its dependencies, however deep.
const FORBIDDEN: &[&str] = &["tokio", "mio", "clap", "anyhow", "aya-log", "kube", "hyper"];

/// One fault for every forbidden package in the plugin, with the way by which it came in.
pub(super) fn faults(workspace: &Workspace) -> Result<Vec<String>> {
    let tree = cmd::output(workspace.cargo().args(["tree", "--package", PLUGIN]).args([
        "--edges",
        "normal",
        "--prefix",
        "depth",
        "--no-dedupe",
    ]))
    .context("cannot list what the plugin depends on")?;
    Ok(forbidden_in(&tree))
}

/// Looks through the output of `cargo tree --prefix depth`: a number, and right behind it name and version.
fn forbidden_in(tree: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut found = Vec::new();
    let mut way: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let package = line.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let Ok(depth) = line[..line.len() - package.len()].parse::<usize>() else { continue };
        let name = package.split(' ').next().unwrap_or_default();
        way.truncate(depth);
        way.push(name);
        if FORBIDDEN.contains(&name) && !found.contains(&name) {
            found.push(name);
            faults.push(format!("{PLUGIN}: depends on {name} ({}): take it out", way.join(" > ")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_package_is_found_once_with_its_way() {
        let tree = "0redirect-cni v0.1.0 (/src/cni)\n1redirect-user v0.1.0\n2aya v0.14.0\n3tokio v1.52.0\n\
                    4mio v1.2.0\n2tokio v1.52.0\n1serde v1.0.0\n";
        assert_eq!(
            forbidden_in(tree),
            [
                "redirect-cni: depends on tokio (redirect-cni > redirect-user > aya > tokio): take it out",
                "redirect-cni: depends on mio (redirect-cni > redirect-user > aya > tokio > mio): take it out",
            ]
        );
    }

    #[test]
    fn every_forbidden_package_is_found_and_a_longer_name_is_not() {
        for name in FORBIDDEN {
            assert_eq!(forbidden_in(&format!("0redirect-cni v0\n1{name} v1.0.0\n")).len(), 1, "{name}");
            assert_eq!(forbidden_in(&format!("0redirect-cni v0\n1{name}-x v1.0.0\n")), [""; 0], "{name}");
        }
    }

    #[test]
    fn the_plugin_of_this_tree_has_none() {
        assert_eq!(faults(&Workspace::find().unwrap()).unwrap(), [""; 0]);
    }
}
