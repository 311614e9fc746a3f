//! Section 7: what `redirect trace` costs a new connection: before there was a reader, while one reads, and
//! after it has ended.

use std::fs::File;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Family, MachineLock, Node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::results::{Measure, Results, Unit};
use crate::scale::Scale;
use crate::scene::{Direction, Mode, Stage};

/// The three situations.
const NEVER: &str = "no reader ever";
const READ: &str = "while one reads";
const ENDED: &str = "after it ended";
/// Measurements of each situation between two changes.
const ROUNDS: usize = 5;
/// The switch is on that long after the last sign of a reader, and a little more.
const SWITCHED_OFF: Duration = Duration::from_millis(3500);

/// Two nodes side by side, of which one never has a reader.
pub(crate) fn run(lock: &MachineLock, scale: &Scale, results: &mut Results) -> Result<()> {
    let (untouched, node) = (Node::new(lock), Node::new(lock));
    let mut never = Stage::new(&untouched, "never", Mode::Ours, &untouched.pod("far"), &[])?;
    let mut traced = Stage::new(&node, "traced", Mode::Ours, &node.pod("afar"), &[])?;
    let mut samples: [Vec<f64>; 3] = Default::default();
    for _ in 0..scale.loads {
        let reader = Reader::start(&node, &mut traced)?;
        for _ in 0..ROUNDS {
            samples[1].push(micros(&mut traced, scale)?);
        }
        reader.end()?;
        sleep(SWITCHED_OFF);
        for _ in 0..ROUNDS {
            samples[0].push(micros(&mut never, scale)?);
            samples[2].push(micros(&mut traced, scale)?);
        }
    }
    let series = [NEVER, READ, ENDED].into_iter().zip(samples);
    results.add(Measure::new("trace", "New outbound connection and `redirect trace`", Unit::Micros, series));
    Ok(())
}

fn micros(stage: &mut Stage, scale: &Scale) -> Result<f64> {
    Ok(stage.set_up(Direction::Outbound, Family::V4, scale.connections)?.whole[0] / 1e3)
}

/// A running `redirect trace`.
struct Reader(Child);

impl Reader {
    /// Starts it, and waits until it has printed something: it is switched on then.
    fn start(node: &Node, stage: &mut Stage) -> Result<Reader> {
        let lines = node.dir().join("trace");
        let mut command = node.redirect();
        command.args(["trace", "-o", "compact"]).stdout(File::create(&lines)?).stderr(Stdio::null());
        let reader = Reader(command.spawn().context("starting redirect trace")?);
        let begun = Instant::now();
        while lines.metadata()?.len() == 0 {
            ensure!(begun.elapsed() < Duration::from_secs(20), "redirect trace shows nothing");
            stage.set_up(Direction::Outbound, Family::V4, 1)?;
            sleep(Duration::from_millis(50));
        }
        Ok(reader)
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGINT)?;
        ensure!(self.0.wait()?.success(), "redirect trace failed");
        Ok(())
    }
}
