//! The benchmark in its short form: every mode is really redirected as it says (the benchmark looks before it
//! measures), and the page is made. Its numbers say nothing here.

use std::process::Command;

use harness::binary;

#[test]
fn the_benchmark_runs_and_makes_its_page() {
    let out = tempfile::tempdir().unwrap();
    // It takes the lock that keeps tests apart itself.
    let mut bench = Command::new(binary("bench"));
    bench.args(["--quick", "--only", "setup,steady,add", "--publish", "--out"]).arg(out.path());
    let output = bench.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let page = std::fs::read_to_string(out.path().join("index.html")).unwrap();
    for what in ["iptables-legacy", "iptables-nft", "nftables, native", "redirect-cni, no guard", "First ADD"]
    {
        assert!(page.contains(what), "{what} is not on the page");
    }
}
