//! contrib/bpftrace: every script is accepted by bpftrace and by this kernel, where bpftrace is installed.

use std::path::Path;
use std::process::Command;

use harness::MachineLock;

#[test]
fn every_script_is_loaded() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("contrib/bpftrace");
    let readme = std::fs::read_to_string(folder.join("README.md")).expect("the document");
    let entries = std::fs::read_dir(&folder).expect("the scripts").flatten().map(|entry| entry.path());
    let scripts: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "bt")).collect();
    assert!(scripts.len() >= 5, "{scripts:?}");
    for script in &scripts {
        let name = script.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(readme.contains(&format!("]({name})")), "the document does not name {name}");
    }
    if Command::new("bpftrace").arg("--version").output().is_err() {
        println!("bpftrace is not installed: the scripts are not loaded");
        return;
    }
    let tracing = ["/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events"];
    if !tracing.iter().any(|file| Path::new(file).exists()) {
        println!("this kernel has no kprobes: the scripts are not loaded");
        return;
    }
    let _lock = MachineLock::take();
    for script in scripts {
        // It attaches, and ends at once by a signal.
        let output = Command::new("timeout")
            .args(["--preserve-status", "--signal=INT", "10", "bpftrace", "-q"])
            .arg(&script)
            .output()
            .expect("start bpftrace");
        let errors = String::from_utf8_lossy(&output.stderr);
        // Newer kernels account memory otherwise, and it goes on.
        let errors: String = errors.lines().filter(|line| !line.contains("RLIMIT_MEMLOCK")).collect();
        assert!(output.status.success() && !errors.contains("ERROR"), "{}: {errors}", script.display());
    }
}
