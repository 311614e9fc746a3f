//! `cargo xtask dist`: what is shipped, in `target/dist/`: the static release binaries, and what
//! `deploy/dist` makes of them.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{arm64, build, cmd, setup};

/// What is shipped, with the size that must not be exceeded. The plugin is read from disk for every pod that
/// starts.
const BINARIES: &[(&str, Option<u64>)] = &[("redirect", None), ("redirect-cni", Some(4 << 20))];

/// By these a test kills or stops a program at a step, and makes it one of another version. A program that is
/// shipped must not look at them.
const TEST_VARIABLES: [&str; 3] = ["REDIRECT_FAULT", "REDIRECT_PAUSE", "REDIRECT_ABI"];

/// What can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Make packages and image for this architecture as well, which compiles everything once more
    #[arg(long, value_parser = ["arm64"])]
    arch: Option<String>,
}

/// Builds and checks the binaries, makes packages, image and chart of them, and lists everything.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, &["toolchain"])?;
    let directory = binaries(workspace)?;
    let foreign = options.arch.is_some().then(|| for_arm64(workspace, &directory)).transpose()?;
    let packer = build::build_binaries(workspace, &["redirect-dist"])?;
    for directory in [Some(&directory), foreign.as_ref()].into_iter().flatten() {
        for (name, _) in BINARIES {
            let path = directory.join(name);
            println!("{:>10} bytes  {}", fs::metadata(&path)?.len(), path.display());
        }
    }
    pack(workspace, &packer, &directory, foreign.as_deref())
}

/// The same with the programs of a build for tests, as a tier's first job.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<()> {
    let directory = binaries(workspace)?;
    pack(workspace, &workspace.target.join("debug"), &directory, None)
}

/// Lets `redirect-dist` make packages, image and chart of the binaries.
fn pack(workspace: &Workspace, programs: &Path, directory: &Path, foreign: Option<&Path>) -> Result<()> {
    let mut packer = workspace.command(programs.join("redirect-dist"));
    packer.arg("--root").arg(&workspace.root);
    packer.arg("--binaries").arg(directory).arg("--out").arg(directory);
    if let Some(foreign) = foreign {
        packer.arg("--arm64").arg(foreign);
    }
    cmd::run(&mut packer)
}

/// The binaries for arm64, checked and started once by an emulator, in a folder of their own.
fn for_arm64(workspace: &Workspace, directory: &Path) -> Result<PathBuf> {
    setup::ensure(workspace, &["arm64"])?;
    let built = arm64::Foreign::fetched(workspace)?.build(workspace)?;
    let place = directory.join("arm64");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    for (name, limit) in BINARIES {
        check(&built.join(name), *limit)?;
        replace(&built.join(name), &place.join(name))?;
    }
    // The plugin is asked as a runtime asks it.
    for (name, arguments, answer) in [
        ("redirect", &["--version"][..], env!("CARGO_PKG_VERSION")),
        ("redirect-cni", &[], "supportedVersions"),
    ] {
        let said = arm64::output(&place.join(name), arguments)?;
        ensure!(said.contains(answer), "{name} for arm64 says {said:?}, without {answer:?}");
    }
    Ok(place)
}

/// Builds the static binaries, checks them, and returns their directory.
pub(crate) fn binaries(workspace: &Workspace) -> Result<PathBuf> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let mut cargo = workspace.cargo();
    // With an explicit target these flags reach our code only, not build scripts, which have to load
    // libraries.
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    cargo
        .args(["build", "--release", "--target", &triple, "--bins"])
        .args(["--package", "redirect-tool", "--package", "redirect-cni"])
        .env(flags, "-C target-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cmd::progress("building static release binaries", &mut cargo)?;
    let directory = workspace.target.join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (name, limit) in BINARIES {
        let built = workspace.target.join(&triple).join("release").join(name);
        check(&built, *limit)?;
        replace(&built, &directory.join(name))?;
    }
    Ok(directory)
}

/// Puts a copy in place by renaming: a binary that is being executed cannot be written to.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh)
        .with_context(|| format!("cannot copy {} to {}", from.display(), fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot put {} in place", to.display()))
}

fn check(binary: &Path, limit: Option<u64>) -> Result<()> {
    let image = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    if wants_interpreter(&image).with_context(|| format!("{} is no 64-bit ELF file", binary.display()))? {
        bail!("{} asks for a dynamic loader, so it would not start in an empty container", binary.display());
    }
    if let Some(variable) = test_variable(&image) {
        bail!(
            "{} knows {variable}, which is for tests: is it built with debug assertions?",
            binary.display()
        );
    }
    let size = image.len() as u64;
    match limit {
        Some(limit) if size > limit => {
            bail!(
                "{} has {size} bytes, {limit} are allowed: look for what grew with cargo-bloat",
                binary.display()
            )
        }
        _ => Ok(()),
    }
}

/// The first of [`TEST_VARIABLES`] that is in the image.
fn test_variable(image: &[u8]) -> Option<&'static str> {
    let is_in = |word: &[u8]| image.windows(word.len()).any(|window| window == word);
    TEST_VARIABLES.into_iter().find(|variable| is_in(variable.as_bytes()))
}

/// Whether an ELF image has a PT_INTERP header, which names the dynamic loader; a static one,
/// position-independent or not, has none. Nothing if it is not a 64-bit little-endian ELF file.
fn wants_interpreter(image: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?)));
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (headers, size, count) = (word(0x20)? as usize, half(0x36)?, half(0x38)?);
    (0..count)
        .map(|index| Some(word(headers + index * size)? == PT_INTERP))
        .try_fold(false, |any, is| Some(any | is?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_a_dynamic_program_and_text_is_none() {
        let myself = fs::read("/proc/self/exe").unwrap();
        assert_eq!(wants_interpreter(&myself), Some(true));
        assert_eq!(wants_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(wants_interpreter(&myself[..0x30]), None);
    }

    #[test]
    fn a_dynamic_or_too_large_binary_is_refused_by_name() {
        let error = check(Path::new("/proc/self/exe"), None).unwrap_err().to_string();
        assert!(error.starts_with("/proc/self/exe asks for a dynamic loader"), "{error}");
    }

    #[test]
    fn a_binary_that_looks_at_a_variable_for_tests_is_found() {
        assert_eq!(test_variable(&fs::read("/proc/self/exe").unwrap()), Some("REDIRECT_FAULT"));
        assert_eq!(test_variable(b"..REDIRECT_ABI_VERSION.."), Some("REDIRECT_ABI"));
        assert_eq!(test_variable(b"REDIRECT_ENTRY REDIRECT"), None);
    }
}
