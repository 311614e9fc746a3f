//! The tests that `docs/faults.md` names exist.

use std::path::Path;

use crate::table::{rows, text_of};

/// The sources that may have a module of tests: `agent: kernel::name` is in the tests of the agent.
fn sources(module: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["plugin", "datapath", "tool", "agent/tests"];
    folders
        .iter()
        .map(|folder| format!("tests/{folder}/{}.rs", module.replace("::", "/")))
        .filter(|path| root.parent().is_some_and(|workspace| workspace.join(path).exists()))
        .collect()
}

#[test]
fn every_test_of_the_table_of_faults_exists() {
    let rows = rows(&text_of("docs/faults.md"));
    let mut count = 0;
    for row in &rows {
        for name in row[1].split('`').filter(|word| word.contains("::")) {
            let (module, test) = name.rsplit_once("::").expect("a module and a test");
            let found = sources(module).iter().any(|path| text_of(path).contains(&format!("fn {test}()")));
            assert!(found, "docs/faults.md names {name}, which is no test");
            count += 1;
        }
    }
    assert!(rows.len() >= 22 && count >= 50, "{} rows, {count} tests", rows.len());
}
