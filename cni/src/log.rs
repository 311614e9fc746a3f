//! Logs: to stderr, which the runtime keeps, and to a file where the configuration names one. Never to
//! stdout.
//!
//! What cannot be logged is lost, and no more: a full disk, a closed stderr or a pipe that has no reader
//! fails no verb.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

/// Starts logging. A log file that cannot be opened is worth a line on stderr, not a pod.
pub(crate) fn start(level: LevelFilter, file: Option<&Path>) {
    // The subscriber's own complaint about a failed write is an `eprintln!`, which panics where stderr fails,
    // too.
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false);
    match file.map(open) {
        None => builder.with_writer(io::stderr).init(),
        Some(Ok(file)) => builder.with_writer(io::stderr.and(Mutex::new(file))).init(),
        Some(Err(error)) => {
            builder.with_writer(io::stderr).init();
            tracing::warn!(logFile = ?file, %error, "cannot open the log file; logging to stderr only");
        }
    }
}

/// A named pipe without a reader is an error here; without O_NONBLOCK it would be a wait for ever.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path)
}
