//! Builds the kernel programs, which the library embeds.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() {
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = workspace.parent().expect("the package is inside the workspace");
    for input in ["redirect-ebpf/src", "redirect-ebpf/Cargo.toml", "redirect-common/src", "xtask/src/ebpf.rs"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    for variable in ["REDIRECT_CNI_CACHE", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = build(workspace) {
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn build(workspace: &Path) -> Result<(), String> {
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?);
    let built = ebpf::build_object(workspace)?;
    let failed = |error| format!("cannot copy {}: {error}", built.display());
    let object = fs::read(&built).map_err(failed)?;
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    println!("cargo::rustc-env=REDIRECT_OBJECT_HASH={:016x}", hasher.finish());
    fs::write(out.join("redirect-ebpf.o"), object).map_err(failed)
}
