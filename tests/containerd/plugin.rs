//! A recorder around the plugin: it runs the real binary with what the runtime gave, writes down the call and
//! the answer, and hands the answer on.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One call of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// `CNI_COMMAND`
    pub(crate) verb: String,
    /// `CNI_CONTAINERID`
    pub(crate) container: String,
    /// Whether there was a `CNI_NETNS`.
    pub(crate) netns: bool,
    /// The configuration's version.
    pub(crate) version: String,
    /// Whether the runtime handed over the pod's cgroup.
    pub(crate) cgroup_path: bool,
    /// The exit status.
    pub(crate) code: i32,
    /// What it printed.
    pub(crate) answer: String,
}

/// Runs `REAL`, the first argument, and appends to the file that the second names.
pub(crate) fn record(arguments: &[OsString]) -> Result<ExitCode> {
    let [real, calls] = arguments else { bail!("expected the plugin and a file") };
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let mut child = Command::new(real)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", real.display()))?;
    // A plugin that refuses before it has read everything is not our failure.
    let _ = child.stdin.take().context("no pipe")?.write_all(&input);
    let output = child.wait_with_output()?;
    let variable = |name| std::env::var(name).unwrap_or_default();
    let conf: Value = serde_json::from_slice(&input).unwrap_or_default();
    let call = Call {
        verb: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: !variable("CNI_NETNS").is_empty(),
        version: conf["cniVersion"].as_str().unwrap_or_default().to_owned(),
        cgroup_path: conf["runtimeConfig"]["cgroupPath"].is_string(),
        code: output.status.code().unwrap_or(-1),
        answer: String::from_utf8_lossy(&output.stdout).into_owned(),
    };
    let mut file = File::options().create(true).append(true).open(calls)?;
    file.write_all(format!("{}\n", serde_json::to_string(&call)?).as_bytes())?;
    std::io::stdout().write_all(&output.stdout)?;
    Ok(ExitCode::from(u8::try_from(call.code).unwrap_or(1)))
}

/// The calls so far.
pub(crate) fn calls(file: &Path) -> Result<Vec<Call>> {
    let text = if file.exists() { fs::read_to_string(file)? } else { String::new() };
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
