//! Runs other programs: the error of a failed one carries its whole command line, a long one shows that it
//! lives.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many lines of a failed step's output are shown.
const TAIL: usize = 60;
/// How often a step without a terminal says that it is still running, so that no CI takes it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Runs a command with our own stdin, stdout and stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start: {}", line(command)))?;
    if !status.success() {
        bail!("failed ({status}): {}", line(command));
    }
    Ok(())
}

/// Turns our process into the command: Ctrl-C then reaches it alone, and its exit status is ours.
pub(crate) fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start: {}", line(command)))
}

/// Runs a command for its stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start: {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "failed ({}): {}\n{}",
            output.status,
            line(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that may take minutes. Its output is kept back and shown only when it fails; meanwhile a
/// terminal sees a spinner with the latest line, anything else a line at the start, now and then, and at the
/// end.
pub(crate) fn progress(label: &str, command: &mut Command) -> Result<()> {
    let (reader, mut child) = spawn_captured(command)?;
    let lines = lines_of(reader);
    let progress = Progress::start(label);
    let tail = watch(&lines, &progress);
    let status = child.wait().with_context(|| format!("cannot wait for: {}", line(command)))?;
    progress.finish(status.success());
    if !status.success() {
        bail!("failed ({status}): {}\n{}", line(command), Vec::from(tail).join("\n"));
    }
    Ok(())
}

/// The command line as one would type it, the variables that were set for it included.
pub(crate) fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.display(), quoted(&value?.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables.chain(words.map(|word| quoted(&word.to_string_lossy()))).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Starts the command with stdout and stderr in one pipe, so that their lines keep their order.
fn spawn_captured(command: &mut Command) -> Result<(PipeReader, Child)> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn().with_context(|| format!("cannot start: {}", line(command)))?;
    // The command keeps its ends of the pipe; only without them does the reader see the end of the output.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((reader, child))
}

fn lines_of(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Shows the lines as they come and returns the last ones.
fn watch(lines: &Receiver<String>, progress: &Progress) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    let mut due = Instant::now() + SIGN_OF_LIFE;
    loop {
        match lines.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                progress.show(&line);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                progress.still_running(tail.back());
                due = Instant::now() + SIGN_OF_LIFE;
            }
            Err(RecvTimeoutError::Disconnected) => return tail,
        }
    }
}

/// What is seen of one long step: a spinner on a terminal, plain lines elsewhere.
struct Progress {
    label: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Progress {
    fn start(label: &str) -> Self {
        let spinner = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}");
            let spinner = ProgressBar::new_spinner().with_prefix(label.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        if spinner.is_none() {
            eprintln!("==> {label}");
        }
        Self { label: label.into(), started: Instant::now(), spinner }
    }

    fn show(&self, line: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(line.trim().to_owned());
        }
    }

    fn still_running(&self, latest: Option<&String>) {
        if self.spinner.is_none() {
            let seconds = self.started.elapsed().as_secs();
            eprintln!(
                "    {} ({seconds} s): {}",
                self.label,
                latest.map_or("no output yet", |line| line.trim())
            );
        }
    }

    fn finish(self, well: bool) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        let outcome = if well { "done" } else { "failed" };
        eprintln!("    {}: {outcome} after {:.1} s", self.label, self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_the_whole_command_line() {
        let error = run(Command::new("false").arg("two words").env("NAME", "it's")).unwrap_err();
        assert!(error.to_string().ends_with(r"NAME='it'\''s' false 'two words'"), "{error}");
    }

    #[test]
    fn a_failed_step_shows_its_output_in_order() {
        let script = "echo out; echo err >&2; exit 3";
        let error =
            progress("a failing step", Command::new("sh").args(["-c", script])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("out\nerr"), "{error}");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let error = progress("many lines", Command::new("sh").args(["-c", "seq 1000; exit 1"])).unwrap_err();
        let text = error.to_string();
        assert_eq!(text.lines().skip(1).count(), TAIL);
        assert!(text.ends_with("\n999\n1000"), "{text}");
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start: no-such-program");
    }
}
