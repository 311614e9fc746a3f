//! The demo as a process: it succeeds, and nothing stays behind, however it ends.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::chain::STANDARD_DIRS;
use harness::{MachineLock, Residue, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The demo, which must not wait for the lock that the test holds.
fn demo() -> Command {
    let mut command = Command::new(binary("demo"));
    command.arg("--locked");
    command
}

fn assert_nothing_left(before: &Residue) {
    let left = before.left_over();
    assert!(left.is_empty(), "the demo left behind:\n  {}", left.join("\n  "));
}

#[test]
fn everything_is_as_promised() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let output = demo().arg("--json").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["proxy"].as_str().unwrap().starts_with("Envoy "), "{report:#}");
    let exchanges = report["exchanges"].as_array().unwrap();
    let ways: Vec<_> =
        exchanges.iter().map(|one| (one["direction"].as_str(), one["family"].as_str())).collect();
    let directions = ["client pod -> server pod", "server pod -> client pod", "client pod -> tproxy pod"];
    let expected = directions.iter().flat_map(|way| [(Some(*way), Some("IPv4")), (Some(*way), Some("IPv6"))]);
    assert_eq!(ways, expected.collect::<Vec<_>>());
    let facts = exchanges.iter().flat_map(|one| one["facts"].as_array().unwrap());
    let rows: Vec<_> = facts.chain(report["checks"].as_array().unwrap()).collect();
    assert!(rows.len() > 40, "{report:#}");
    assert!(rows.iter().all(|row| row["ok"] == true), "{report:#}");
    assert_nothing_left(&before);
}

#[test]
fn the_table_names_everything_that_was_seen() {
    let _lock = MachineLock::take();
    let output = demo().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "getpeername",
        "by its client (accept), at",
        "original destination",
        "10.72.0.2:8080",
        "[fd72:1::2]:8080",
        "Everything is as promised.",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 120), "a line is too wide:\n{text}");
    let (shown, printed) = (shown_in_readme(), comparable(&text));
    assert!(
        printed.windows(shown.len()).any(|lines| lines == shown),
        "README.md shows another table than the demo prints; copy it from:\n{text}"
    );
}

/// The table that the README shows, line by line.
fn shown_in_readme() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("read the README");
    let lines = readme.lines().skip_while(|line| !line.starts_with("    client pod -> server pod"));
    let table: Vec<_> = lines.take_while(|line| line.starts_with("    ")).collect();
    assert!(table.len() > 10, "README.md shows the table of the demo");
    comparable(&table.join("\n"))
}

/// Lines without indentation, and the ports that the kernel chose as `N`.
fn comparable(text: &str) -> Vec<String> {
    let port = |word: &str| match word.rsplit_once(':') {
        Some((address, port)) if port.parse().is_ok_and(|port: u16| port >= 32768) => format!("{address}:N"),
        _ => word.to_owned(),
    };
    text.lines().map(|line| line.split_whitespace().map(port).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn without_an_envoy_a_built_in_proxy_takes_its_place_and_the_table_says_so() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let empty = tempfile::tempdir().unwrap();
    let output = demo().env("REDIRECT_CNI_CACHE", empty.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("The sidecars are a small built-in proxy"), "{text}");
    drop(empty);
    assert_nothing_left(&before);
}

#[test]
fn a_row_that_is_not_as_promised_fails_and_is_named() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    // A plugin that passes the result on and, without settings, does nothing: requests go past the sidecars.
    let bin = tempfile::tempdir().unwrap();
    let tuning =
        STANDARD_DIRS.map(|dir| Path::new(dir).join("tuning")).into_iter().find(|path| path.exists());
    symlink(tuning.expect("the standard CNI plugins"), bin.path().join("redirect-cni")).unwrap();
    let output = demo().env("REDIRECT_BIN_DIR", bin.path()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let row = "not as promised: client pod -> server pod over IPv4: The sidecar of the client pod, outbound";
    assert!(errors.contains(row), "{errors}");
    drop(bin);
    assert_nothing_left(&before);
}

/// Interrupts the demo while the step that begins with `step` runs.
fn interrupted(signal: Signal, step: &str) {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let mut child = demo().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let reached = lines.by_ref().map_while(Result::ok).any(|line| line.contains(step));
    assert!(reached, "the demo never came to `{step}`");
    let start = Instant::now();
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(128 + signal as i32), "{rest:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?} to end", start.elapsed());
    assert_nothing_left(&before);
}

#[test]
fn ctrl_c_while_a_pod_is_added() {
    interrupted(Signal::SIGINT, "client pod: cgroup");
}

#[test]
fn ctrl_c_while_a_sidecar_starts() {
    interrupted(Signal::SIGINT, "server pod: sidecar");
}

#[test]
fn a_service_manager_ends_it_among_the_requests() {
    interrupted(Signal::SIGTERM, "server pod -> client pod over IPv4");
}
