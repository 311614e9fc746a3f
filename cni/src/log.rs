//! Logs: to stderr, which the runtime keeps, to a file where the configuration names one, and to the node's
//! agent where it listens. Never to stdout.
//!
//! What cannot be logged is lost, and no more: a full disk, a closed stderr or a pipe that has no reader
//! fails no verb.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;

use redirect_user::node::private;
use tracing_subscriber::fmt::MakeWriter;

use crate::conf::LogPlan;

/// Starts logging. A log file that cannot be opened is worth a line on stderr, not a pod.
pub(crate) fn start(plan: &LogPlan) {
    let file = plan.file.as_deref().map(open).transpose();
    let (file, problem) = match file {
        Ok(file) => (file.map(Mutex::new), None),
        Err(error) => (None, Some(error)),
    };
    let agent = plan.agent.as_deref().and_then(|socket| agent(socket).ok());
    // The subscriber's own complaint about a failed write is an `eprintln!`, which panics where stderr fails,
    // too.
    tracing_subscriber::fmt()
        .with_max_level(plan.level)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(Sinks { file, agent })
        .init();
    if let Some(error) = problem {
        tracing::warn!(logFile = ?plan.file, %error, "cannot open the log file; logging to stderr only");
    }
}

/// Where each line goes: stderr, the file, and the node's agent, whose log then tells about this pod.
struct Sinks {
    file: Option<Mutex<File>>,
    agent: Option<UnixDatagram>,
}

/// One line on its way.
struct Line<'a>(&'a Sinks);

impl<'a> MakeWriter<'a> for Sinks {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

impl Write for Line<'_> {
    /// Takes a whole line, which the subscriber writes at once, to every place that will have it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(line);
        if let Some(Ok(mut file)) = self.0.file.as_ref().map(Mutex::lock) {
            let _ = file.write_all(line);
        }
        if let Some(agent) = &self.0.agent {
            let _ = agent.send(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The agent's socket for lines. One that does not read is not waited for.
fn agent(socket: &Path) -> io::Result<UnixDatagram> {
    let datagrams = UnixDatagram::unbound()?;
    datagrams.set_nonblocking(true)?;
    datagrams.connect(socket)?;
    Ok(datagrams)
}

/// A named pipe without a reader is an error here; without O_NONBLOCK it would be a wait for ever.
fn open(path: &Path) -> io::Result<File> {
    private::open(OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK), path)
}
