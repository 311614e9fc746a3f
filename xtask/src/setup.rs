//! `cargo xtask setup [GROUP..]`: installs what is missing and says what it does. A second run only looks.

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::groups::{GROUPS, Group, Step};
use crate::workspace::Workspace;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to set up; without names, everything that `demo` and a plain `test` use
    groups: Vec<String>,
    /// Show the groups and what is missing, and change nothing
    #[arg(long)]
    list: bool,
}

/// Sets up the groups that the options name, or else `usual`: those that `demo` and `test` use.
pub(crate) fn main(workspace: &Workspace, options: &Options, usual: &[&str]) -> Result<()> {
    if options.list {
        return list(workspace);
    }
    let names: Vec<&str> = if options.groups.is_empty() {
        usual.to_vec()
    } else {
        options.groups.iter().map(String::as_str).collect()
    };
    if !ensure(workspace, &names)? {
        println!("nothing to do: {} in place", names.join(", "));
    }
    Ok(())
}

/// Brings what the named groups lack; quick and silent when nothing is. Returns whether anything was to be
/// done.
pub(crate) fn ensure(workspace: &Workspace, names: &[&str]) -> Result<bool> {
    let groups = names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
    let packages: Vec<_> = groups.iter().flat_map(|group| group.packages).copied().collect();
    let mut acted = !apt::missing(&packages).is_empty();
    apt::install(&packages)?;
    for step in groups.iter().flat_map(|group| group.steps) {
        if !(step.done)(workspace) {
            acted = true;
            take(workspace, step)?;
        }
    }
    Ok(acted)
}

/// Takes one step, and forgives its failure where there is a way on without it.
fn take(workspace: &Workspace, step: &Step) -> Result<()> {
    eprintln!("==> missing: {}", step.name);
    let outcome = (step.run)(workspace).with_context(|| format!("could not set up {}", step.name));
    match (outcome, step.otherwise) {
        (Err(error), Some(otherwise)) => {
            eprintln!("warning: {error:#}\nwarning: going on without {}: {otherwise}", step.name);
            Ok(())
        }
        (outcome, _) => outcome,
    }
}

fn find(name: &str) -> Result<&'static Group> {
    let known = || GROUPS.iter().map(|group| group.name).collect::<Vec<_>>().join(", ");
    match GROUPS.iter().find(|group| group.name == name) {
        Some(group) => Ok(group),
        None => bail!("there is no group {name:?} to set up; there are: {}", known()),
    }
}

fn list(workspace: &Workspace) -> Result<()> {
    for group in GROUPS {
        println!("{:<11} {}", group.name, group.about);
        let packages = apt::missing(group.packages).into_iter().map(|package| package.deb);
        let steps = group.steps.iter().filter(|step| !(step.done)(workspace)).map(|step| step.name);
        for name in packages.chain(steps) {
            println!("{:<11}   missing: {name}", "");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_group_is_named_with_the_known_ones() {
        let error = find("tolchain").map(|group| group.name).unwrap_err().to_string();
        assert!(error.contains("\"tolchain\"") && error.contains("toolchain, mesh, "), "{error}");
    }

    #[test]
    fn group_names_are_unique_and_probes_are_absolute() {
        let mut names: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), GROUPS.len());
        let packages = || GROUPS.iter().flat_map(|group| group.packages);
        assert!(packages().all(|package| package.probe.starts_with('/') && !package.deb.contains(' ')));
    }
}
