//! Section 2: what redirection costs once a connection is there.

use anyhow::Result;
use harness::Family;

use crate::results::{Measure, Results, Unit};
use crate::scale::Scale;
use crate::scene::{Direction, Stage, interleaved};
use crate::worker::Order;

/// Bytes of a gigabyte against nanoseconds of a second: the two cancel out.
const CHUNK_BYTES: f64 = 65_536.0;

/// Round trips of one byte, and throughput, in both directions over IPv4.
pub(crate) fn run(stages: &mut [Stage], scale: &Scale, results: &mut Results) -> Result<()> {
    for (direction, id, title) in [
        (Direction::Outbound, "outbound", "outbound over loopback"),
        (Direction::Inbound, "inbound", "inbound over veth"),
    ] {
        for stage in stages.iter_mut() {
            stage.open(direction, Family::V4)?;
            stage.run(&Order::RoundTrips(scale.round_trips))?;
        }
        let trips = interleaved(stages, scale.rounds, |stage| {
            Ok(stage.run(&Order::RoundTrips(scale.round_trips))?.cpu / 1e3)
        })?;
        let bulk = interleaved(stages, scale.rounds, |stage| {
            Ok(CHUNK_BYTES / stage.run(&Order::Bulk(scale.chunks))?.cpu)
        })?;
        let labels = || stages.iter().map(|stage| stage.mode.label());
        let title_of = |what: &str| format!("Kept connection {title}: {what}");
        results.add(Measure::new(
            &format!("steady-{id}-trip"),
            &title_of("CPU time per round trip"),
            Unit::Micros,
            labels().zip(trips),
        ));
        results.add(Measure::new(
            &format!("steady-{id}-bulk"),
            &title_of("throughput of one CPU for both ends"),
            Unit::GigabytesPerSecond,
            labels().zip(bulk),
        ));
    }
    Ok(())
}
