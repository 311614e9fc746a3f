//! ARCHITECTURE.md's code map against the workspace: each package is in it and has a README.

use std::collections::BTreeSet;
use std::path::Path;

use crate::table::{assert_same, section, text_of};

/// The folders of the workspace's packages, from its manifest.
fn members() -> BTreeSet<String> {
    let manifest = text_of("Cargo.toml");
    let (_, list) = manifest.split_once("\nmembers = [").expect("the manifest lists its members");
    let list = list.split(']').next().expect("the list ends");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_package_is_in_the_code_map_and_has_a_readme() {
    let map = section("ARCHITECTURE.md", "## Code map");
    let first_cells =
        map.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    let named = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    assert_same("the code map in ARCHITECTURE.md", &named, &members());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    for member in members() {
        let folder = root.join(&member);
        let described =
            folder.ancestors().take(2).any(|folder| folder != root && folder.join("README.md").exists());
        assert!(
            described,
            "{member} has no README.md: say what it is for, its invariants, and a reading order"
        );
    }
}
