//! The plugin's log lines in the agent's log, so that one place tells why a pod was or was not redirected.
//!
//! A datagram socket beside the one for questions ([`LOG_SOCKET`]). The plugin does not wait: what arrives
//! while the queue is full is lost here, and the runtime has it all the same.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redirect_user::enrol::protocol::LOG_SOCKET;
use tokio::net::UnixDatagram;

use crate::state::State;

/// The longest line that is taken.
const LINE_MAX: usize = 16 << 10;

/// The socket; its file goes away with it.
#[derive(Debug)]
pub struct Logs {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Logs {
    /// Listens beside `questions`, in one step, for root only.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(questions: &Path) -> io::Result<Logs> {
        let path = questions.with_file_name(LOG_SOCKET);
        let new = questions.with_file_name(format!("{LOG_SOCKET}.{}", std::process::id()));
        let socket = UnixDatagram::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, &path)?;
        Ok(Logs { socket, path })
    }

    /// Reads for ever.
    pub async fn read(self, state: Arc<State>) {
        let mut line = vec![0; LINE_MAX];
        loop {
            match self.socket.recv(&mut line).await {
                Ok(length) => {
                    state.metrics.plugin_lines.inc();
                    tell(&String::from_utf8_lossy(&line[..length]));
                }
                Err(error) => {
                    tracing::warn!(%error, "the plugin's lines are no longer read");
                    return;
                }
            }
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Tells a line at its own level; its time is that of the line itself, within milliseconds.
fn tell(line: &str) {
    let line = line.trim_end();
    let mut words = line.splitn(2, ' ');
    let rest = words.nth(1).unwrap_or(line).trim_start();
    let (level, rest) = rest.split_once(' ').unwrap_or(("INFO", rest));
    match level {
        "ERROR" => tracing::error!(from = "plugin", "{rest}"),
        "WARN" => tracing::warn!(from = "plugin", "{rest}"),
        "DEBUG" | "TRACE" => tracing::debug!(from = "plugin", "{rest}"),
        _ => tracing::info!(from = "plugin", "{rest}"),
    }
}
