//! Finds a toolchain that can compile for the BPF target and builds `redirect-ebpf` with it.
//!
//! This file has two users: `cargo xtask build-ebpf`, and the build script of `redirect-user`, which includes
//! it by path so that a plain `cargo build` embeds an up-to-date object. It therefore uses nothing but the
//! standard library.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that the kernel programs are compiled for: little-endian BPF.
const TARGET: &str = "bpfel-unknown-none";

/// Names the directory for downloaded and built tools, if the default does not suit.
pub(crate) const CACHE_VARIABLE: &str = "REDIRECT_CNI_CACHE";

/// A compiler together with the source of exactly its own `core`.
pub(crate) struct Toolchain {
    rustc: PathBuf,
    /// What to call it in messages.
    name: &'static str,
}

/// Builds the object in release mode below `<workspace>/target/ebpf` and returns its path.
///
/// # Errors
/// A text for the terminal: no toolchain, no bpf-linker, or the compiler's own failure.
pub(crate) fn build_object(workspace: &Path) -> Result<PathBuf, String> {
    let toolchain = find_toolchain(workspace)?;
    let status = cargo_build(workspace, &toolchain)?.status();
    let status = status.map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err(format!("building redirect-ebpf for {TARGET} with {} failed ({status})", toolchain.name));
    }
    without_debug(&target_dir(workspace).join(TARGET).join("release/redirect-ebpf"))
}

/// The object without DWARF, which is three quarters of it: the kernel's type information (BTF) is made of it
/// and needs it no more. Where LLVM's objcopy is not found, the object stays as it is; it works the same.
fn without_debug(object: &Path) -> Result<PathBuf, String> {
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| {
        env::split_paths(&path)
            .flat_map(|dir| [dir.join("llvm-objcopy-22"), dir.join("llvm-objcopy")])
            .collect::<Vec<_>>()
    });
    let packaged = PathBuf::from("/usr/lib/llvm-22/bin/llvm-objcopy");
    let Some(objcopy) = [packaged].into_iter().chain(on_path).find(|tool| tool.exists()) else {
        return Ok(object.to_owned());
    };
    let stripped = object.with_extension("o");
    let status = Command::new(&objcopy).arg("--strip-debug").arg(object).arg(&stripped).status();
    match status {
        Ok(status) if status.success() => Ok(stripped),
        Ok(status) => {
            Err(format!("{} --strip-debug {} failed ({status})", objcopy.display(), object.display()))
        }
        Err(error) => Err(format!("cannot start {}: {error}", objcopy.display())),
    }
}

/// Where cargo puts the object and what it needs; apart from the outer build, which holds its own directory's
/// lock.
pub(crate) fn target_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/ebpf")
}

/// The command that builds the object.
///
/// # Errors
/// A text for the terminal: no bpf-linker.
pub(crate) fn cargo_build(workspace: &Path, toolchain: &Toolchain) -> Result<Command, String> {
    let linker = find_linker()?;
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--release", "--package", "redirect-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_dir(workspace));
    for (variable, _) in env::vars_os().filter(|(name, _)| belongs_to_outer_build(name)) {
        cargo.env_remove(variable);
    }
    cargo
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"));
    Ok(cargo)
}

/// Whether a variable was set by the cargo that runs us and would leak its target or flags into the inner
/// build.
fn belongs_to_outer_build(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    let tool = ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_LINKER", "RUSTFLAGS", "RUSTDOC", "TARGET"];
    tool.contains(&&*name)
        || name.starts_with("CARGO_ENCODED_")
        || name.starts_with("CARGO_CFG_")
        || name.starts_with("CARGO_FEATURE_")
        || name.starts_with("CARGO_BUILD_")
        || name.starts_with("CARGO_TARGET_")
}

/// The workspace's toolchain if it has the source of `core`, else Debian's.
///
/// # Errors
/// A text for the terminal that names both ways to get one.
pub(crate) fn find_toolchain(workspace: &Path) -> Result<Toolchain, String> {
    let active = PathBuf::from(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if has_core_source(&active, workspace) {
        return Ok(Toolchain { rustc: active, name: "the workspace toolchain" });
    }
    let debian = PathBuf::from("/usr/bin/rustc");
    if debian.exists() && has_core_source(&debian, workspace) {
        return Ok(Toolchain { rustc: debian, name: "Debian's rustc" });
    }
    Err("no compiler with the source of its `core` library was found, which the BPF target needs. \
         Either add it to the workspace toolchain: rustup component add rust-src; \
         or, on Debian or Ubuntu, install a packaged one: apt-get install rustc-web rust-web-src. \
         `cargo xtask setup` does whichever works here"
        .into())
}

fn has_core_source(rustc: &Path, workspace: &Path) -> bool {
    let output = Command::new(rustc).current_dir(workspace).args(["--print", "sysroot"]).output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// bpf-linker from the cache that `cargo xtask setup` fills, else from the `PATH`.
fn find_linker() -> Result<PathBuf, String> {
    let cached = cache_dir().map(|cache| cache.join("tools/bin/bpf-linker"));
    let on_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).map(|dir| dir.join("bpf-linker")).collect::<Vec<_>>());
    cached.into_iter().chain(on_path).find(|candidate| candidate.exists()).ok_or_else(|| {
        "bpf-linker was found neither in the cache nor on the PATH. `cargo xtask setup` builds it; by hand: \
         LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features \
         --features llvm-22"
            .into()
    })
}

/// Where downloaded and built tools are kept, outside `target/` so that `cargo clean` spares them.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    named(CACHE_VARIABLE)
        .or_else(|| named("XDG_CACHE_HOME").map(|dir| dir.join("redirect-cni")))
        .or_else(|| named("HOME").map(|dir| dir.join(".cache/redirect-cni")))
}
