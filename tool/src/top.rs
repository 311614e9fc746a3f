//! `redirect top`: pods and programs, live. The kernel measures programs only while this runs.

mod draw;
mod sample;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::sys::Stats;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use redirect_user::node::Node;

use self::sample::Sample;

/// `redirect top`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
}

/// Runs until q, Esc or Ctrl-C.
pub(crate) fn run(node: &Node, args: &Args) -> Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        bail!("`redirect top` needs a terminal; `redirect stats --output json` has the same counters");
    }
    // The statistics end with the descriptor.
    let _measuring = aya::sys::enable_stats(Stats::RunTime)
        .context("cannot switch the statistics of programs on; run this as root")?;
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let done = watch(node, Duration::from_secs(args.every), &mut terminal);
    ratatui::restore();
    done.map(|()| ExitCode::SUCCESS)
}

fn watch(node: &Node, every: Duration, terminal: &mut ratatui::DefaultTerminal) -> Result<()> {
    let mut before = Sample::take(node)?;
    let mut first = 0;
    loop {
        let next = Instant::now() + every;
        let now = Sample::take(node)?;
        let view = draw::View { now: &now, before: &before, first };
        terminal.draw(|frame| view.draw(frame))?;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if !event::poll(left)? {
                break;
            }
            let Event::Key(key) = event::read()? else { break };
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Down | KeyCode::Char('j') => {
                    first = (first + 1).min(now.pods.len().saturating_sub(1))
                }
                KeyCode::Up | KeyCode::Char('k') => first = first.saturating_sub(1),
                _ => continue,
            }
            terminal.draw(|frame| draw::View { now: &now, before: &before, first }.draw(frame))?;
        }
        before = now;
    }
}
