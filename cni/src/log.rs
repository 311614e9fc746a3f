//! Logs: to stderr, which the runtime keeps, and to a file where the configuration names one. Never to
//! stdout.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

/// Starts logging. A log file that cannot be opened is worth a line on stderr, not a pod.
pub(crate) fn start(level: LevelFilter, file: Option<PathBuf>) {
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
    match file.as_deref().map(open) {
        None => builder.with_writer(std::io::stderr).init(),
        Some(Ok(file)) => builder.with_writer(std::io::stderr.and(Mutex::new(file))).init(),
        Some(Err(error)) => {
            builder.with_writer(std::io::stderr).init();
            tracing::warn!(logFile = ?file, %error, "cannot open the log file");
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
