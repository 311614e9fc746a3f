//! A browser without a window, as a user's program that knows nothing of this project.

use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Where Debian puts it.
const CHROMIUM: &str = "/usr/bin/chromium";
/// Quiet: without them it looks for updates and for its maker's hosts at every start. The sandbox needs
/// namespaces of an unprivileged user, and tests run as root.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// Starts a browser that has never been started before with these arguments, the page among them, and returns
/// what it prints. It is ended after so many seconds.
///
/// # Panics
/// It is not installed, or it fails.
#[must_use]
pub fn browse(seconds: u32, arguments: &[&str]) -> Vec<u8> {
    let profile = TempDir::new().expect("make a directory");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &seconds.to_string(), CHROMIUM]).args(FLAGS);
    command.arg(format!("--user-data-dir={}", profile.path().display())).args(arguments);
    command.env("HOME", profile.path()).stdin(Stdio::null());
    let output = command.output().expect("start `timeout`");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{CHROMIUM} ({}; `cargo xtask setup browser`): {errors}", output.status);
    output.stdout
}
