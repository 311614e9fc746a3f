//! The report: everything as JSON, a text that a person reads, and a chart for each measure.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::chart::{self, figures, interval};
use crate::goals::Goal;
use crate::machine::Machine;
use crate::programs::Share;
use crate::results::{Measure, Results};
use crate::sample::quantile;
use crate::scene::Mode;

/// Everything about a run.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) machine: &'a Machine,
    /// Seconds that the run took.
    pub(crate) seconds: f64,
    pub(crate) goals: Vec<Goal>,
    pub(crate) programs: &'a [Share],
    pub(crate) results: &'a Results,
}

impl Report<'_> {
    /// Writes `report.json`, `report.md` and the charts.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        for measure in &self.results.measures {
            write(&format!("{}.svg", measure.id), &chart::svg(measure))?;
        }
        write("report.json", &serde_json::to_string_pretty(self)?)?;
        write("report.md", &self.text()?)
    }

    fn text(&self) -> Result<String> {
        let mut text = String::from("# Benchmark report\n\n");
        self.machine(&mut text)?;
        self.goals(&mut text)?;
        self.programs(&mut text)?;
        text.push_str("\n## Measures\n\nMedian, quartiles, 95 % confidence interval of the median, p99 and number of values.\n");
        for measure in &self.results.measures {
            table(&mut text, measure, self.machine.busy())?;
        }
        Ok(text)
    }

    fn machine(&self, text: &mut String) -> std::fmt::Result {
        let m = self.machine;
        writeln!(
            text,
            "{}; {} x {}, {} MiB{}; {}, Linux {}; {}; {}; Envoy {}. Load average {:.1} at the start, {:.1} at the end; {:.0} s.\n",
            m.date,
            m.cpus,
            m.cpu,
            m.memory_mib,
            if m.virtualised { ", virtual machine" } else { "" },
            m.system,
            m.kernel,
            m.iptables,
            m.nftables,
            m.envoy,
            m.load[0],
            m.load[1],
            self.seconds
        )?;
        if m.busy() {
            text.push_str("**The machine was busy when the run began:** only ratios within a round mean something; intervals are marked with ≈.\n\n");
        }
        Ok(())
    }

    fn goals(&self, text: &mut String) -> std::fmt::Result {
        text.push_str("## Marks\n\n| mark | value | 95 % interval | at most | |\n|---|---:|---:|---:|---|\n");
        for goal in &self.goals {
            let interval =
                goal.interval.map_or_else(String::new, |range| interval(range, self.machine.busy()));
            let verdict = if goal.met { "met" } else { "**missed**" };
            writeln!(
                text,
                "| {} | {} | {interval} | {} | {verdict} |",
                goal.what,
                figures(goal.value),
                goal.at_most
            )?;
        }
        Ok(())
    }

    fn programs(&self, text: &mut String) -> std::fmt::Result {
        if self.programs.is_empty() {
            return Ok(());
        }
        text.push_str("\n## Kernel programs\n\n| direction | program | runs per connection | ns per run |\n|---|---|---:|---:|\n");
        for share in self.programs {
            writeln!(
                text,
                "| {} | {} | {:.1} | {:.0} |",
                share.direction, share.program, share.runs, share.nanos
            )?;
        }
        Ok(())
    }
}

fn table(text: &mut String, measure: &Measure, busy: bool) -> std::fmt::Result {
    writeln!(text, "\n### {}\n\n![{}]({}.svg)\n", measure.title, measure.title, measure.id)?;
    writeln!(
        text,
        "| {} | median | quartiles | 95 % interval | p99 | values |\n|---|---:|---:|---:|---:|---:|",
        measure.unit.symbol()
    )?;
    for series in &measure.series {
        let s = &series.summary;
        let mut sorted = series.values.clone();
        sorted.sort_by(f64::total_cmp);
        let range = |[low, high]: [f64; 2]| format!("{} to {}", figures(low), figures(high));
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            series.label,
            figures(s.median),
            range(s.quartiles),
            interval(s.interval, busy),
            figures(quantile(&sorted, 0.99)),
            s.count
        )?;
    }
    if let Some(ratio) = measure.added_ratio(Mode::Ours) {
        writeln!(
            text,
            "\nAdded to the unredirected pod, as a part of what iptables-legacy adds, round by round: {} ({} to {}).",
            figures(ratio.median),
            figures(ratio.interval[0]),
            figures(ratio.interval[1])
        )?;
    }
    Ok(())
}
