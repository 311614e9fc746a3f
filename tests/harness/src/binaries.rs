//! Where the programs under test are.

use std::path::PathBuf;

/// A binary of the workspace: in `$REDIRECT_BIN_DIR`, else in the directory that this executable was built
/// into.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("REDIRECT_BIN_DIR").map_or_else(built_beside_this, PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it (cargo build), or name its directory in REDIRECT_BIN_DIR",
        path.display()
    );
    path
}

/// `target/<profile>`: test executables are one level below it, in `deps`.
fn built_beside_this() -> PathBuf {
    let exe = std::env::current_exe().expect("this executable has a path");
    let dir = exe.parent().expect("an executable is in a directory");
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}
