//! The only writer to stdout: one result or one error, once.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::Error;
use crate::version::Version;

/// The version in which replies are written, once the configuration has said which.
static VERSION: OnceLock<Version> = OnceLock::new();
/// Whether something was written: a panic after the result must not add an error to it.
static SPOKEN: AtomicBool = AtomicBool::new(false);

/// From now on replies are written in this version.
pub(crate) fn speak(version: Version) {
    let _ = VERSION.set(version);
}

/// Ends a call.
pub(crate) fn send(outcome: Result<String, Error>) -> ExitCode {
    let result = outcome.and_then(|text| {
        write(&text).map_err(|source| Error::Io { what: "write the result to stdout", source })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write(&describe(&error));
            ExitCode::FAILURE
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    details: String,
}

/// An error as the specification has it.
pub(crate) fn describe(error: &Error) -> String {
    let (code, msg) = error.code();
    let cni_version = VERSION.get().copied().unwrap_or(Version::NEWEST).name();
    let failure = Failure { cni_version, code, msg, details: cut(error.one_line()) };
    // Strings and a number: there is nothing in it that JSON could not say.
    serde_json::to_string(&failure).unwrap_or_default()
}

/// A verifier log runs to megabytes, and what follows it says what to do: both ends stay, the log on stderr
/// has all.
fn cut(details: String) -> String {
    const ENDS: [usize; 2] = [1_500, 1_000];
    let (mut head, mut tail) = (ENDS[0], details.len().saturating_sub(ENDS[1]));
    if tail <= head {
        return details;
    }
    while !details.is_char_boundary(head) {
        head -= 1;
    }
    while !details.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} [{} bytes left out] {}", &details[..head], tail - head, &details[tail..])
}

fn write(text: &str) -> io::Result<()> {
    // DEL, CHECK, GC and STATUS succeed in silence.
    if text.is_empty() || SPOKEN.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Turns a panic into an error reply. The release build aborts on a panic, so the reply is written in the
/// hook.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("redirect-cni: {info}");
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let _ = write(&describe(&Error::Panic(format!("redirect-cni panicked{place}"))));
        std::process::exit(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stays_in_its_line() {
        let what = "key \u{1b}[31m".to_owned();
        let error = Error::Decode { what, problem: "no\nvalue \u{9b}2J \u{7f}\u{202e}".to_owned() };
        let reply: serde_json::Value = serde_json::from_str(&describe(&error)).unwrap();
        assert_eq!(reply["details"], "key \\u{1b}[31m: no\\nvalue \\u{9b}2J \\u{7f}\\u{202e}");
    }

    #[test]
    fn long_details_keep_both_ends() {
        assert_eq!(cut("short".to_owned()), "short");
        let details = cut(format!("begin {} end", "\u{20ac}".repeat(100_000)));
        assert!(
            details.starts_with("begin ") && details.ends_with(" end") && details.len() < 2_700,
            "{}",
            details.len()
        );
    }
}
