//! Section 1: what it costs to set up a connection, with nothing behind the sidecar's listener.

use anyhow::Result;
use harness::Family;

use crate::results::{Measure, Results, Unit};
use crate::scale::Scale;
use crate::scene::{Direction, Stage, interleaved};
use crate::worker::Timing;

/// Measures both directions in both families.
pub(crate) fn run(stages: &mut [Stage], scale: &Scale, results: &mut Results) -> Result<()> {
    for (direction, family, id, title) in [
        (Direction::Outbound, Family::V4, "outbound4", "outbound over loopback, IPv4"),
        (Direction::Inbound, Family::V4, "inbound4", "inbound over veth, IPv4"),
        (Direction::Outbound, Family::V6, "outbound6", "outbound over loopback, IPv6"),
        (Direction::Inbound, Family::V6, "inbound6", "inbound over veth, IPv6"),
    ] {
        for stage in stages.iter_mut() {
            stage.open(direction, family)?;
            stage.set_up(direction, family, scale.connections)?;
        }
        let timings =
            interleaved(stages, scale.rounds, |stage| stage.set_up(direction, family, scale.connections))?;
        let series = |read: fn(&Timing) -> f64| {
            stages
                .iter()
                .zip(&timings)
                .map(move |(stage, rounds)| (stage.mode.label(), rounds.iter().map(read).collect()))
        };
        let title = |what: &str| format!("Connection {title}: {what}");
        let id = |what: &str| format!("setup-{id}-{what}");
        results.add(Measure::new(&id("cpu"), &title("CPU time"), Unit::Micros, series(|t| t.cpu / 1e3)));
        results.add(Measure::new(
            &id("connect"),
            &title("time to accept"),
            Unit::Micros,
            series(|t| t.connected / 1e3),
        ));
        results.add(Measure::new(
            &id("latency"),
            &title("whole, median"),
            Unit::Micros,
            series(|t| t.whole[0] / 1e3),
        ));
        results.add(Measure::new(
            &id("p99"),
            &title("whole, p99"),
            Unit::Micros,
            series(|t| t.whole[1] / 1e3),
        ));
    }
    Ok(())
}
