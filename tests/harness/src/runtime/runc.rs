//! A stand-in for runc that takes resource limits out of a container's specification and then becomes runc.
//!
//! On a host with hybrid cgroups the controllers belong to the v1 hierarchies, so that limits cannot be set
//! in the v2 hierarchy that the node uses; runc fails on them. Where there are controllers nothing here needs
//! limits either.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Keys of `linux.resources` that need a controller.
const LIMITS: [&str; 6] = ["cpu", "memory", "pids", "hugepageLimits", "blockIO", "unified"];

/// Does what the program is for; returns only if it fails.
pub fn become_runc(arguments: &[OsString]) -> Result<()> {
    if let Some(bundle) = bundle(arguments) {
        let path = bundle.join("config.json");
        let problem = || format!("rewriting {}", path.display());
        let mut spec: Value =
            serde_json::from_slice(&fs::read(&path).with_context(problem)?).with_context(problem)?;
        without_limits(&mut spec);
        fs::write(&path, spec.to_string()).with_context(problem)?;
    }
    let error = Command::new(runc()).args(arguments).exec();
    Err(error).context("becoming runc (Debian package runc)")
}

/// Debian has it in a directory that is not everybody's path.
fn runc() -> &'static Path {
    let sbin = Path::new("/usr/sbin/runc");
    if sbin.exists() { sbin } else { Path::new("runc") }
}

/// The value of `--bundle` or `-b`.
fn bundle(arguments: &[OsString]) -> Option<PathBuf> {
    let at = arguments.iter().position(|argument| argument == "--bundle" || argument == "-b")?;
    arguments.get(at + 1).map(PathBuf::from)
}

fn without_limits(spec: &mut Value) {
    if let Some(resources) = spec["linux"]["resources"].as_object_mut() {
        resources.retain(|key, _| !LIMITS.contains(&key.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_go_and_everything_else_stays() {
        let mut spec = json!({ "linux": { "cgroupsPath": "/x", "resources": { "cpu": { "shares": 2 }, "devices": [1] } } });
        without_limits(&mut spec);
        assert_eq!(spec, json!({ "linux": { "cgroupsPath": "/x", "resources": { "devices": [1] } } }));
    }

    #[test]
    fn the_bundle_is_found_wherever_it_stands() {
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(bundle(&arguments("--root /r create --bundle /b --pid-file /p id")), Some("/b".into()));
        assert_eq!(bundle(&arguments("--root /r kill id 9")), None);
    }
}
