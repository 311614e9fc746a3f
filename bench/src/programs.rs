//! What each kernel program costs per connection, by the kernel's own clock around it.

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use harness::Family;
use redirect_user::kernel::hook::Hook;
use serde::Serialize;

use crate::scale::Scale;
use crate::scene::{Direction, Mode, Stage};

/// A program's share in one kind of connection. The kernel's clock around a program costs some 20 ns by
/// itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) direction: &'static str,
    pub(crate) program: &'static str,
    /// How often it ran for one connection.
    pub(crate) runs: f64,
    /// How long one run took, in nanoseconds.
    pub(crate) nanos: f64,
}

/// Measures both directions.
pub(crate) fn run(stages: &mut [Stage], scale: &Scale) -> Result<Vec<Share>> {
    let ours = stages.iter_mut().find(|stage| stage.mode == Mode::Ours).context("no pod of ours")?;
    let clock =
        enable_stats(Stats::RunTime).context("switching on the kernel's statistics about programs")?;
    let mut shares = Vec::new();
    for (direction, label) in [(Direction::Outbound, "outbound"), (Direction::Inbound, "inbound")] {
        let before = totals();
        let count = scale.rounds * scale.connections;
        for _ in 0..scale.rounds {
            ours.set_up(direction, Family::V4, scale.connections)?;
        }
        for (hook, (time, runs)) in totals() {
            let (time_before, runs_before) =
                before.iter().find(|(name, _)| *name == hook).map_or((0, 0), |(_, t)| *t);
            let (time, runs) = ((time - time_before) as f64, (runs - runs_before) as f64);
            if runs > 0.0 {
                shares.push(Share {
                    direction: label,
                    program: hook.name(),
                    runs: runs / count as f64,
                    nanos: time / runs,
                });
            }
        }
    }
    drop(clock);
    Ok(shares)
}

/// Nanoseconds and runs of our programs, all instances of one together.
fn totals() -> Vec<(Hook, (u64, u64))> {
    let mut totals: Vec<(Hook, (u64, u64))> = Hook::ALL.iter().map(|hook| (*hook, (0, 0))).collect();
    for program in loaded_programs().flatten() {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if let Some((_, (time, runs))) = totals.iter_mut().find(|(hook, _)| hook.name() == name) {
            *time += program.run_time().as_nanos() as u64;
            *runs += program.run_count();
        }
    }
    totals
}
