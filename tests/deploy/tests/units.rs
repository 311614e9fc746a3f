//! The files for systemd, as systemd itself reads them: units without a complaint, and the directory that the
//! tmpfiles entry makes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use redirect_deploy_tests::helm::root;

const UNITS: [&str; 2] = ["redirect-cni.service", "redirect-cni-agent.service"];

/// What `systemd-analyze verify` says of units in a folder; nothing where they are right.
fn complaints(dir: &Path) -> String {
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]).args(UNITS.map(|unit| dir.join(unit)));
    let output = command.output().expect("systemd-analyze starts: run `cargo xtask setup deploy`");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !said.is_empty(), "{output:?}");
    said
}

/// The units with the program where it is built, since systemd looks whether it is there.
fn units(dir: &Path, change: impl Fn(&str) -> String) {
    let program = harness::binary("redirect").canonicalize().expect("the tool is built");
    for unit in UNITS {
        let text = fs::read_to_string(root().join("deploy/package").join(unit)).expect("the unit");
        assert!(text.contains("ExecStart=/usr/bin/redirect "), "{unit} starts what the package has");
        let here = text.replace("/usr/bin/redirect", &program.display().to_string());
        fs::write(dir.join(unit), change(&here)).expect("a unit");
    }
}

#[test]
fn systemd_has_no_complaint_about_the_units() {
    let dir = tempfile::tempdir().expect("a folder");
    units(dir.path(), str::to_owned);
    assert_eq!(complaints(dir.path()), "");
    // It does complain about what is wrong.
    for (right, wrong) in [("Restart=always", "Restart=ever"), ("ProtectHome", "ProtectHouse")] {
        units(dir.path(), |text| text.replace(right, wrong));
        assert!(complaints(dir.path()).contains("redirect-cni-agent.service"), "{wrong}");
    }
}

#[test]
fn the_tmpfiles_entry_makes_the_directory_of_the_records_for_root_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let conf = root().join("deploy/package/tmpfiles.conf");
    let mut command = Command::new("systemd-tmpfiles");
    let output = command.arg("--create").arg(format!("--root={}", dir.path().display())).arg(conf).output();
    let output = output.expect("systemd-tmpfiles starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let made = fs::metadata(dir.path().join("run/redirect-cni")).expect("it is there");
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);
}
