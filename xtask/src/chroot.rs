//! The shipped plugin in an empty root directory: no loader, no libraries, no /proc, no /etc. A runtime may
//! call it from a distribution that has none of what this machine has.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::dist;
use crate::workspace::Workspace;

/// A pod without a sidecar: the previous result comes back.
const CONF: &str = r#"{"cniVersion":"1.0.0","name":"mesh","type":"redirect-cni","podSource":"annotations",
    "runtimeConfig":{"io.kubernetes.cri.pod-annotations":null},"prevResult":{"ips":[]}}"#;

/// Builds what is shipped and runs the plugin with nothing around it.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let shipped = dist::binaries(workspace)?.join("redirect-cni");
    let root = workspace.target.join(format!("chroot-{}", std::process::id()));
    fs::create_dir(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let outcome = run_inside(&root, &shipped);
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    outcome
}

fn run_inside(root: &Path, shipped: &Path) -> Result<()> {
    fs::copy(shipped, root.join("redirect-cni")).context("cannot copy the plugin")?;
    let versions = call(root, "VERSION", "")?;
    ensure!(versions.contains(r#""supportedVersions":["0.3.1""#), "VERSION in an empty root: {versions}");
    let result = call(root, "ADD", CONF)?;
    ensure!(result == "{\"ips\":[]}\n", "ADD in an empty root: {result}");
    Ok(())
}

/// What the plugin prints.
fn call(root: &Path, verb: &str, conf: &str) -> Result<String> {
    let mut child = Command::new("chroot")
        .arg(root)
        .arg("/redirect-cni")
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/nowhere")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run chroot")?;
    child.stdin.take().context("no pipe to the plugin")?.write_all(conf.as_bytes())?;
    let output = child.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{verb} in an empty root: {}, {out} {err}", output.status);
    Ok(out.into_owned())
}
