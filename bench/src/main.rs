//! `cargo xtask bench`: what redirection costs, side by side in one run: none, Istio's iptables rules on both
//! backends, and this project.
//!
//! A [`worker`] in each pod of the [`scene`] runs the loops of [`load`]. The sections, in the order of the
//! report: [`setup`] of connections, [`steady`] ones, [`proxied`] by a real Envoy, [`inbound`] through one,
//! [`add`] and delete of pods, [`growth`], [`unrelated`] cost, and of being [`traced`]. [`goals`] says what
//! was to be reached, [`report`] writes it all down.

mod add;
mod chart;
mod goals;
mod growth;
mod inbound;
mod load;
mod machine;
mod memory;
mod page;
mod passing;
mod plugin;
mod programs;
mod proxied;
mod report;
mod results;
mod rules;
mod sample;
mod scale;
mod scene;
mod setup;
mod steady;
mod traced;
mod unrelated;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use harness::{MachineLock, Node, Pod, binary};

use crate::machine::Machine;
use crate::programs::Share;
use crate::report::Report;
use crate::results::Results;
use crate::scale::{FULL, QUICK, Scale};

/// Measure redirect-cni against iptables and against no redirection
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// A short run that shows that everything works; its numbers say little
    #[arg(long)]
    quick: bool,
    /// Only these sections (repeat or separate by commas)
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Also write index.html: one page with charts, conditions and every value
    #[arg(long)]
    publish: bool,
    /// Where report.md, report.json and the charts go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// New connections
    Setup,
    /// Round trips and throughput of kept connections
    Steady,
    /// wrk through Envoy to nginx
    Proxied,
    /// wrk from outside through Envoy to nginx, in TPROXY mode as well
    Inbound,
    /// The plugin and the iptables commands
    Add,
    /// Pods, ranges and open connections
    Growth,
    /// What others pay
    Unrelated,
    /// What `redirect trace` costs
    Traced,
}

fn main() -> ExitCode {
    let outcome = match std::env::args().collect::<Vec<_>>().as_slice() {
        [_, word, wire] if word == worker::SUBCOMMAND => {
            wire.parse().map_err(Into::into).and_then(worker::main)
        }
        _ => bench(&Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let scale = if options.quick { QUICK } else { FULL };
    let start = Instant::now();
    let mut machine = Machine::look();
    let mut results = Results::default();
    let lock = MachineLock::take();
    let programs = sections(&lock, options, &scale, &mut results)?;
    results.plugin_bytes = Some(std::fs::metadata(binary("redirect-cni"))?.len());
    machine.note_end();
    let report = Report {
        machine: &machine,
        seconds: start.elapsed().as_secs_f64(),
        goals: goals::all(&results, machine.cpus, scale.burst),
        programs: &programs,
        results: &results,
    };
    report.write(&options.out)?;
    if options.publish {
        let path = options.out.join("index.html");
        std::fs::write(&path, page::html(&report)).with_context(|| format!("writing {}", path.display()))?;
    }
    for goal in &report.goals {
        let verdict = if goal.met { "met   " } else { "MISSED" };
        println!("{verdict} {:>9} (at most {}) {}", chart::figures(goal.value), goal.at_most, goal.what);
    }
    println!("{}", options.out.join(if options.publish { "index.html" } else { "report.md" }).display());
    Ok(())
}

fn sections(
    lock: &MachineLock,
    options: &Options,
    scale: &Scale,
    results: &mut Results,
) -> Result<Vec<Share>> {
    let node = &Node::new(lock);
    let wanted = |section| options.only.is_empty() || options.only.contains(&section);
    // First, because it also measures a node with nothing attached.
    if wanted(Section::Unrelated) {
        unrelated::run(node, scale, results)?;
    }
    if wanted(Section::Traced) {
        traced::run(lock, scale, results)?;
    }
    let peer = node.pod("peer");
    let mut stages = scene::stages(node, &peer)?;
    let mut shares = Vec::new();
    if wanted(Section::Setup) {
        setup::run(&mut stages, scale, results)?;
        shares = programs::run(&mut stages, scale)?;
    }
    if wanted(Section::Steady) {
        steady::run(&mut stages, scale, results)?;
    }
    if wanted(Section::Proxied) {
        proxied::run(node, scale, results)?;
    }
    if wanted(Section::Inbound) {
        inbound::run(node, scale, results)?;
    }
    let most = scale.fleet.iter().copied().max().unwrap_or(0).max(scale.adds + scale.burst);
    let fleet: Vec<Pod> = match wanted(Section::Add) || wanted(Section::Growth) {
        true => (0..most).map(|number| node.pod(&format!("pod{number}"))).collect(),
        false => Vec::new(),
    };
    if wanted(Section::Add) {
        add::run(lock, node, &fleet, scale, results)?;
    }
    if wanted(Section::Growth) {
        growth::pods(node, &mut stages, &fleet, scale, results)?;
        growth::ranges(node, &peer, scale, results)?;
        growth::destinations(node, &peer, scale, results)?;
        growth::open_connections(node, &mut stages, scale, results)?;
    }
    Ok(shares)
}
