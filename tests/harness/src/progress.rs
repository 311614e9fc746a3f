//! One line on standard error for each step that takes time: a spinner on a terminal, a plain line elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs a step under its name and says how long it took; an error carries the name.
pub fn step<T>(name: impl Display, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let name = name.to_string();
    let start = Instant::now();
    let spinner = stderr().is_terminal().then(|| spinner(&name));
    if spinner.is_none() {
        eprintln!("  .. {name}");
    }
    let result = run();
    let seconds = start.elapsed().as_secs_f32();
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
        eprintln!("  {} {name} ({seconds:.1} s)", if result.is_ok() { "ok" } else { "NO" });
    }
    result.with_context(|| format!("this step failed: {name}"))
}

fn spinner(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})");
    let spinner = ProgressBar::new_spinner().with_message(name.to_owned());
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
