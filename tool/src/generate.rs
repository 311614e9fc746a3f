//! `redirect completions`, and what a package takes along: completions and manual pages, all from clap.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;

/// The shells that get a file.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Args::command(), "redirect", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Writes manual pages into the folder `man` below a folder, and completions into `completions`, each file
/// with the name that its reader expects.
pub(crate) fn all(folder: &Path) -> Result<ExitCode> {
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    for place in [&pages, &completions] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    clap_mangen::generate_to(Args::command().disable_help_subcommand(true), &pages)
        .with_context(|| format!("cannot write manual pages into {}", pages.display()))?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Args::command(), "redirect", &completions)
            .with_context(|| format!("cannot write completions into {}", completions.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
