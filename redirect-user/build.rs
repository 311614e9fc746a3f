//! Builds the kernel programs and prepares the one that is loaded once per pod.
//!
//! `inbound` needs the pod's cookie in one of its instructions, so attach loads it itself. Parsing an ELF object for
//! that costs more than the load; here it is done once, and what is left is a list of instructions in which every
//! reference to a map is an index into a list of map names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use aya_obj::Object;

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
    let object = fs::read(&built).map_err(|error| format!("cannot read {}: {error}", built.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        fs::write(out.join(name), bytes).map_err(|error| format!("cannot write {name}: {error}"))
    };
    write("redirect-ebpf.o", &object)?;
    let (instructions, maps) = prepare_inbound(&object)?;
    write("inbound.insns", &instructions)?;
    write("inbound_maps.rs", format!("&{maps:?}").as_bytes())
}

/// The instructions of `inbound`, subprograms linked in, with map indices instead of file descriptors.
fn prepare_inbound(object: &[u8]) -> Result<(Vec<u8>, Vec<String>), String> {
    let mut object = Object::parse(object).map_err(|error| format!("redirect-ebpf.o: {error}"))?;
    let mut maps: Vec<_> = object.maps.drain().collect();
    maps.sort_by(|a, b| a.0.cmp(&b.0));
    let text = object.functions.keys().map(|(section, _)| *section).collect::<HashSet<_>>();
    object
        .relocate_maps(
            maps.iter().enumerate().map(|(index, (name, map))| (name.as_str(), index as i32, map)),
            &text,
        )
        .map_err(|error| format!("inbound: {error}"))?;
    object.relocate_calls(&text).map_err(|error| format!("inbound: {error}"))?;
    let program = object.programs.get("inbound").ok_or("redirect-ebpf.o has no program `inbound`")?;
    let function = &object.functions[&program.function_key()];
    let mut bytes = Vec::with_capacity(function.instructions.len() * 8);
    for insn in &function.instructions {
        bytes.push(insn.code);
        bytes.push(insn.dst_reg() | insn.src_reg() << 4);
        bytes.extend(insn.off.to_ne_bytes());
        bytes.extend(insn.imm.to_ne_bytes());
    }
    Ok((bytes, maps.into_iter().map(|(name, _)| name).collect()))
}
