//! House rule: a program that is there is built. Packages that name their targets lose one silently when its
//! lines go.

use std::fs;
use std::path::Path;

/// What is wrong with a `main.rs` outside of `src`: its package's manifest does not name it.
pub(super) fn fault(root: &Path, name: &Path) -> Option<String> {
    let is_main = name.file_name().is_some_and(|file| file == "main.rs");
    if !is_main || name.parent().is_some_and(|folder| folder.ends_with("src")) {
        return None;
    }
    let package = name.ancestors().skip(2).find(|folder| root.join(folder).join("Cargo.toml").exists())?;
    let path = name.strip_prefix(package).ok()?;
    let manifest = fs::read_to_string(root.join(package).join("Cargo.toml")).ok()?;
    // Without `autotests = false` cargo finds what is in `tests` by itself.
    let found_by_cargo = path.starts_with("tests") && !manifest.contains("autotests = false");
    let named = manifest.contains(&format!("path = \"{}\"", path.display()));
    (!named && !found_by_cargo)
        .then(|| format!("no target in {} has it", package.join("Cargo.toml").display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_target_is_found() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("Cargo.toml"), "autotests = false\n[[test]]\npath = \"a/main.rs\"\n")
            .unwrap();
        assert_eq!(fault(root.path(), Path::new("a/main.rs")), None);
        assert_eq!(fault(root.path(), Path::new("src/main.rs")), None);
        assert_eq!(fault(root.path(), Path::new("b/main.rs")).unwrap(), "no target in Cargo.toml has it");
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        assert_eq!(fault(root.path(), Path::new("tests/c/main.rs")), None);
    }
}
