//! A real Envoy as a pod's sidecar: uid and gid 1337, no capabilities, in the pod's network namespace and
//! cgroup.
//!
//! [`Bootstrap`] says what it is configured to do, [`Entry`] is what it says about each connection.

mod access;
mod bootstrap;
mod extension;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use access::Entry;
pub use bootstrap::{
    ADMIN_PORT, Bootstrap, Families, HEALTH_PORT, INBOUND_PORT, OUTBOUND_PORT, OriginalSrc, socket_address,
};

use crate::netns::NetNs;
use crate::process::{Capabilities, User};
use crate::unprivileged::{privileged, unprivileged};

/// How long Envoy may take to become ready, to write a log line, or to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(10);

/// A running Envoy. It stops when this goes out of scope.
#[derive(Debug)]
pub struct Envoy {
    name: String,
    child: Child,
    log: PathBuf,
    /// How much of the log has been read.
    read: usize,
}

impl Envoy {
    /// The Envoy that `cargo xtask setup` has put into the cache; none where there is no download, or
    /// where it does not run.
    #[must_use]
    pub fn find() -> Option<PathBuf> {
        let releases = fs::read_dir(cache()?.join("envoy")).ok()?.flatten();
        let mut binaries: Vec<_> = releases.map(|release| release.path().join("envoy")).collect();
        binaries.sort();
        binaries.into_iter().rev().find(|binary| version(binary).is_some())
    }

    /// The release of the binary, for example `1.40.0`.
    #[must_use]
    pub fn version(binary: &Path) -> Option<String> {
        version(binary)
    }

    /// Starts Envoy in a pod and waits until it is ready. Its logs are `NAME.access` and `NAME.log` in `dir`.
    ///
    /// # Errors
    /// If there is no Envoy, or it does not become ready; the message has the last lines of its own log.
    pub fn start(
        name: &str,
        netns: &NetNs,
        cgroup: &Path,
        bootstrap: &Bootstrap,
        dir: &Path,
    ) -> Result<Envoy> {
        Envoy::start_as((User::PROXY, Capabilities::None), name, (netns, cgroup), bootstrap, dir)
    }

    /// The same as another user, without a capability or with those of the user.
    ///
    /// # Errors
    /// As [`Envoy::start`].
    pub fn start_as(
        (user, capabilities): (User, Capabilities),
        name: &str,
        (netns, cgroup): (&NetNs, &Path),
        bootstrap: &Bootstrap,
        dir: &Path,
    ) -> Result<Envoy> {
        let binary = Envoy::find().context("there is no Envoy in the cache: run `cargo xtask setup mesh`")?;
        let log = dir.join(format!("{name}.access"));
        let own_log = dir.join(format!("{name}.log"));
        let mut command = match capabilities {
            Capabilities::None => unprivileged(&binary, user)?,
            Capabilities::OfUser => privileged(&binary, user)?,
            Capabilities::Network => bail!("an Envoy has all capabilities of its user or none"),
        };
        command.args(["--config-yaml", &bootstrap.to_json().to_string()]);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]);
        command.args(["--file-flush-interval-msec", "20"]);
        command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(File::create(&own_log)?);
        netns.enter(&mut command, Some(cgroup));
        let child = command.spawn().context("starting Envoy")?;
        let mut envoy = Envoy { name: name.to_owned(), child, log, read: 0 };
        if let Err(error) = netns.run(|| envoy.wait_until_ready()) {
            let log = fs::read_to_string(&own_log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(10).collect();
            bail!("{error:#}; the last lines of its log, newest first:\n{}", tail.join("\n"));
        }
        Ok(envoy)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the admin interface, for example for `/stats`.
    ///
    /// # Errors
    /// If it does not answer with success.
    pub fn admin(netns: &NetNs, path: &str) -> Result<String> {
        netns.run(|| ask_admin(path))
    }

    /// What was logged since this was asked last.
    ///
    /// # Errors
    /// If the log cannot be read, or has a line that is no [`Entry`].
    pub fn new_entries(&mut self) -> Result<Vec<Entry>> {
        let text =
            fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let new = text.get(self.read..whole).unwrap_or_default();
        self.read = whole;
        new.lines().filter(|line| !line.is_empty()).map(Entry::parse).collect()
    }

    /// Waits until `count` entries have been logged since the log was read last, and returns them. Envoy logs
    /// a connection when it has ended.
    ///
    /// # Errors
    /// As [`Envoy::new_entries`], and when there are fewer after ten seconds.
    pub fn wait_for_entries(&mut self, count: usize) -> Result<Vec<Entry>> {
        self.entries_within(PATIENCE, count)
    }

    /// As [`Envoy::wait_for_entries`], with another limit to the waiting.
    ///
    /// # Errors
    /// As [`Envoy::new_entries`], and when there are fewer when the time is over.
    pub fn entries_within(&mut self, patience: Duration, count: usize) -> Result<Vec<Entry>> {
        let deadline = Instant::now() + patience;
        let mut entries = self.new_entries()?;
        while entries.len() < count {
            if Instant::now() > deadline {
                bail!("{} logged {} of {count} connections within {patience:?}", self.name, entries.len());
            }
            thread::sleep(INTERVAL);
            entries.extend(self.new_entries()?);
        }
        Ok(entries)
    }

    /// Stops it with SIGTERM and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be signalled, or had to be killed.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} did not stop within {PATIENCE:?}; it was killed", self.name);
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Waits for a ready admin interface; the caller is in the pod's namespace.
    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match ask_admin("/ready") {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it was ready", self.name);
            }
            if Instant::now() > deadline {
                return Err(error.context(format!("{} was not ready within {PATIENCE:?}", self.name)));
            }
            thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Both fail when it has been stopped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request to the admin interface of the namespace that the calling thread is in.
fn ask_admin(path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, ADMIN_PORT)).context("connecting to Envoy's admin port")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("Envoy's admin port answered without a body")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("Envoy's admin port answered {path} with `{status}`");
    }
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return unchunked(body).with_context(|| format!("Envoy's answer to {path} is cut short"));
    }
    Ok(body.to_owned())
}

/// A body without its chunks: each has its length in front, in hexadecimal on a line; the last has length 0.
fn unchunked(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole += rest.get(..length)?;
        body = rest.get(length + 2..)?;
    }
}

/// The directory for built and downloaded tools, which `cargo xtask setup` fills.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("REDIRECT_CNI_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("redirect-cni")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/redirect-cni")))
}

/// What `envoy --version` says: `PATH  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (_, build) = text.split_once("version: ")?;
    build.split('/').nth(1).map(str::to_owned)
}
