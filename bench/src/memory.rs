//! Kernel memory: what the maps and programs say of themselves, and what the whole kernel has in use.

use std::fs;

use anyhow::{Context as _, Result};
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;
use redirect_user::kernel::hook::Hook;

/// The maps of this project.
const MAPS: [&str; 8] = ["PODS", "RANGES", "SETS", "OWN", "ORIGIN", "HANDOFF", "LISTENERS", "STATS"];

/// Kibibytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// `memlock` of all our maps.
    pub(crate) maps: f64,
    /// `memlock` of all our programs.
    pub(crate) programs: f64,
    /// Slab, per-CPU memory and vmalloc of the whole kernel.
    pub(crate) kernel: f64,
}

impl Memory {
    /// Looks around.
    pub(crate) fn now() -> Result<Memory> {
        let mut maps = 0;
        for map in loaded_maps().flatten() {
            if map.name_as_str().is_some_and(|name| MAPS.contains(&name)) {
                maps += locked(&map.fd().context("opening a map")?)?;
            }
        }
        let mut programs = 0;
        for program in loaded_programs().flatten() {
            if program.name_as_str().is_some_and(|name| Hook::from_name(name).is_some()) {
                programs += u64::from(program.memory_locked().context("asking about a program")?);
            }
        }
        Ok(Memory { maps: maps as f64 / 1024.0, programs: programs as f64 / 1024.0, kernel: kernel()? })
    }
}

/// `memlock` in a descriptor's own words, in bytes.
fn locked(map: &impl std::os::fd::AsFd) -> Result<u64> {
    use std::os::fd::AsRawFd as _;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).context("a map has no memlock")?;
    Ok(line.trim().parse()?)
}

fn kernel() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        number.with_context(|| format!("/proc/meminfo has no {name}"))
    };
    Ok(field("Slab:")? + field("Percpu:")? + field("VmallocUsed:")?)
}
