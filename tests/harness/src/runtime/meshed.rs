//! Containers of a pod in the mesh: a real Envoy as the sidecar, and the calling program as the application.
//! What they need is mounted from the machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::cri::messages::*;
use super::image::IMAGE;
use super::tool;
use crate::User;
use crate::envoy::{Bootstrap, Entry, Envoy};

/// The command line of a sidecar that writes an access log.
#[must_use]
pub fn envoy_command() -> Vec<String> {
    let bootstrap = Bootstrap::default().to_json().to_string();
    let line = ["/envoy", "--config-yaml", &bootstrap, "--disable-hot-restart", "--concurrency", "1"];
    let rest = ["--log-level", "warn", "--file-flush-interval-msec", "20"];
    line.into_iter().chain(rest).map(str::to_owned).collect()
}

/// A container of this name and attempt, with Envoy and the calling program mounted ([`tool::PATH`]); `log`
/// is the name of its log.
///
/// # Errors
/// If there is no Envoy.
pub fn container(
    (name, attempt): (&str, u32),
    log: &str,
    command: Vec<String>,
    user: User,
    namespaces: NamespaceOption,
) -> Result<ContainerConfig> {
    let envoy = Envoy::find().context("there is no Envoy in the cache: run `cargo xtask setup mesh`")?;
    let own = std::env::current_exe()?;
    let libraries = ["/usr", "/lib", "/lib64"].map(|path| (path, Path::new(path)));
    let mounts = libraries.into_iter().filter(|(_, path)| path.exists());
    let mounts = mounts.chain([("/envoy", envoy.as_path()), (tool::PATH, own.as_path())]);
    let id = |value: u32| Some(Int64Value { value: value.into() });
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces),
        run_as_user: id(user.uid),
        run_as_group: id(user.gid),
        ..LinuxContainerSecurityContext::default()
    };
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt }),
        image: Some(ImageSpec { image: IMAGE.into() }),
        command,
        mounts: mounts.map(|(inside, outside)| mount(inside, outside)).collect(),
        log_path: log.into(),
        linux: Some(LinuxContainerConfig { resources: None, security_context: Some(security) }),
        ..ContainerConfig::default()
    })
}

fn mount(inside: &str, outside: &Path) -> Mount {
    let host_path = outside.display().to_string();
    Mount { container_path: inside.into(), host_path, readonly: true, ..Mount::default() }
}

/// What a sidecar has logged. A CRI log has lines of `TIME stdout|stderr F|P TEXT`; the access log is what
/// went to stdout.
///
/// # Errors
/// If the file cannot be read, or a line is no entry.
pub fn access_log(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // What follows the last line end is still being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().filter_map(|line| Some(line.split_once(" stdout F ")?.1));
    lines.map(Entry::parse).collect()
}
