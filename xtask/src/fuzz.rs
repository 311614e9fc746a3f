//! `cargo xtask fuzz`: feeds what reads other people's input with libFuzzer, for a time each.
//!
//! The compiler is the workspace's own: LLVM's coverage counters are a pass that any release of rustc can be
//! told to run. There is no sanitizer, which a stable release does not take; what is fuzzed is safe Rust.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{cmd, setup};

/// The functions of the package `redirect-fuzz`, each with a folder of inputs.
const TARGETS: [&str; 8] = [
    "conf",
    "cni_args",
    "prev_result",
    "annotations",
    "proxy_config",
    "record",
    "agent_protocol",
    "trace_block",
];
/// What libFuzzer reads: counters for each edge, and the operands of comparisons.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How many inputs are kept of one function at most; `fuzz/tests/corpus.rs` holds it.
const MOST_INPUTS: usize = 60;
/// The longest input in bytes.
const LONGEST: &str = "-max_len=4096";

/// What can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these
    #[arg(value_parser = TARGETS)]
    target: Vec<String>,
    /// How long each goes on
    #[arg(long, default_value = "1")]
    minutes: u32,
    /// Put those few of all found and kept inputs that reach most into fuzz/corpus
    #[arg(long)]
    keep: bool,
    /// Feed this one file, and nothing else
    #[arg(long)]
    input: Option<PathBuf>,
}

/// Builds, and runs one after the other; the first that finds something ends it.
pub(crate) fn main(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, &["toolchain", "fuzz"])?;
    let feed = Feed { workspace, program: build(workspace)?, place: workspace.target.join("fuzz") };
    let wanted = |name: &&&str| options.target.is_empty() || options.target.iter().any(|one| one == **name);
    for name in TARGETS.iter().filter(wanted) {
        match &options.input {
            Some(input) => cmd::run(feed.of(name).arg(input))?,
            None => feed.run(name, options.minutes)?,
        }
        if options.keep {
            feed.keep(name)?;
        }
    }
    Ok(())
}

/// Builds the program, in a folder of its own: the flags are for no other build.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = workspace.target.join("fuzz");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "redirect-fuzz", "--bins", "--features", "libfuzzer"]);
    // With an explicit target the flags do not reach build scripts and macros.
    cargo.args(["--profile", "fuzz", "--target", &triple, "--target-dir"]).arg(&target);
    cargo.env(format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_")), FLAGS);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cmd::progress("building the program that is fed, with coverage counters", &mut cargo)?;
    Ok(target.join(triple).join("fuzz/feed"))
}

/// The program, and where its findings go.
struct Feed<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
    place: PathBuf,
}

impl Feed<'_> {
    fn of(&self, name: &str) -> Command {
        let mut command = self.workspace.command(&self.program);
        command.env("REDIRECT_FUZZ_TARGET", name).args([LONGEST, "-timeout=10", "-rss_limit_mb=2048"]);
        command.arg(format!("-artifact_prefix={}/{name}-", self.place.display()));
        command
    }

    /// The inputs that are kept, and those that were found in earlier runs on this machine.
    fn inputs(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let found = self.place.join("corpus").join(name);
        fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        Ok((self.workspace.root.join("fuzz/corpus").join(name), found))
    }

    fn run(&self, name: &str, minutes: u32) -> Result<()> {
        let (kept, found) = self.inputs(name)?;
        let mut fuzzer = self.of(name);
        // New inputs go to the first folder.
        fuzzer.arg(&found).arg(&kept);
        fuzzer.arg(format!("-max_total_time={}", minutes * 60)).arg("-print_final_stats=1");
        println!("==> {name}, {minutes} minutes");
        let begun = Instant::now();
        let said = self.said(&mut fuzzer, name)?;
        println!("    {} in {} s", summary(&said), begun.elapsed().as_secs());
        Ok(())
    }

    /// Replaces the kept inputs by those few of all that reach most places together.
    fn keep(&self, name: &str) -> Result<()> {
        let (kept, found) = self.inputs(name)?;
        let control = self.place.join(format!("{name}.merge"));
        // libFuzzer goes on with what a merge that was cut short has left.
        let _ = fs::remove_file(&control);
        let mut merge = self.of(name);
        // How often a place is reached does not count here.
        merge.args(["-set_cover_merge=1", "-use_counters=0"]);
        merge.arg(format!("-merge_control_file={}", control.display()));
        let empty = self.place.join("empty");
        let _ = fs::remove_dir_all(&empty);
        fs::create_dir_all(&empty)?;
        self.said(merge.arg(&empty).arg(&kept).arg(&found), name)?;
        fs::remove_dir_all(&empty)?;
        let said = fs::read_to_string(&control).with_context(|| control.display().to_string())?;
        let chosen: Vec<_> =
            most_places(&said, MOST_INPUTS).into_iter().map(fs::read).collect::<Result<_, _>>()?;
        fs::remove_dir_all(&kept)?;
        fs::create_dir(&kept)?;
        for (number, input) in chosen.iter().enumerate() {
            fs::write(kept.join(format!("{number:02}")), input)?;
        }
        println!("    {} inputs are kept", chosen.len());
        Ok(())
    }

    /// Runs libFuzzer; what it said.
    fn said(&self, command: &mut Command, name: &str) -> Result<String> {
        let output = command.output().with_context(|| format!("cannot start {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let lines: Vec<_> = said.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            bail!("{tail}\n{name} has found something; see {}", findings(&self.place, name));
        }
        ensure!(said.contains("inline 8-bit counters"), "the program has no coverage counters: {said}");
        Ok(said)
    }
}

fn findings(place: &Path, name: &str) -> String {
    format!("{0}/{name}-*, and try it with `cargo xtask fuzz {name} --input FILE`", place.display())
}

/// The files of libFuzzer's list of what each reaches that together reach most: always the one next that adds
/// most, and of two the shorter.
fn most_places(list: &str, most: usize) -> Vec<&str> {
    let mut lines = list.lines();
    let mut number = || lines.next().and_then(|line| line.parse::<usize>().ok()).unwrap_or(0);
    let (count, _) = (number(), number());
    let names: Vec<&str> = lines.by_ref().take(count).collect();
    let mut sizes = vec![0_usize; names.len()];
    let mut reached: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); names.len()];
    for line in lines {
        let mut words = line.split(' ');
        let (kind, index) = (words.next(), words.next().and_then(|word| word.parse::<usize>().ok()));
        match (kind, index.filter(|index| *index < names.len())) {
            (Some("STARTED"), Some(index)) => {
                sizes[index] = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            }
            (Some("FT"), Some(index)) => reached[index].extend(words),
            _ => {}
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let best = (0..names.len()).max_by_key(|index| (reached[*index].len(), Reverse(sizes[*index])));
        let Some(best) = best.filter(|best| !reached[*best].is_empty()) else { break };
        let new = std::mem::take(&mut reached[best]);
        reached.iter_mut().for_each(|places| places.retain(|place| !new.contains(place)));
        chosen.push(names[best]);
    }
    chosen
}

/// Inputs, inputs per second and places reached, of libFuzzer's last words.
fn summary(said: &str) -> String {
    let stat = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.unwrap_or("?").trim().to_owned()
    };
    let last = said.lines().rev().find(|line| line.contains(" cov: ")).unwrap_or_default();
    let after =
        |word: &str| last.split_once(word).and_then(|(_, rest)| rest.split([' ', '/']).next()).unwrap_or("?");
    format!(
        "{} inputs, {} in a second, {} places reached by {} inputs, {} MiB at most",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        after(" cov: "),
        after(" corp: "),
        stat("peak_rss_mb")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_last_words_are_summed_up() {
        let said = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\n#99\tDONE   cov: 345 ft: 400 corp: 9/9b\n\
                    stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     33\n\
                    stat::peak_rss_mb:              41\n";
        assert_eq!(
            summary(said),
            "99 inputs, 33 in a second, 345 places reached by 9 inputs, 41 MiB at most"
        );
        assert_eq!(summary(""), "? inputs, ? in a second, ? places reached by ? inputs, ? MiB at most");
    }

    #[test]
    fn few_inputs_are_chosen_that_reach_most() {
        let list = "4\n0\none\ntwo\nthree\nfour\nSTARTED 0 9\nFT 0 1 2\nCOV 0\nSTARTED 1 30\nFT 1 2 3 4\n\
                    STARTED 2 20\nFT 2 3 4 2\nSTARTED 3 1\nFT 3 5\n";
        // Two is as good as three, and longer; one adds a place to three, and so does four, which is shorter.
        assert_eq!(most_places(list, 60), ["three", "four", "one"]);
        assert_eq!(most_places(list, 2), ["three", "four"]);
        assert!(most_places("", 60).is_empty());
    }

    #[test]
    fn every_folder_of_the_corpus_is_a_target() {
        let folders = fs::read_dir(Workspace::find().unwrap().root.join("fuzz/corpus")).unwrap();
        let mut folders: Vec<_> =
            folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
        folders.sort();
        let mut targets = TARGETS.map(str::to_owned);
        targets.sort();
        assert_eq!(folders, targets);
    }
}
