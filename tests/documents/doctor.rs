//! docs/doctor.md against the checks of `redirect doctor`.

use std::collections::BTreeSet;

use redirect_user::doctor::CHECKS;

use crate::table::{assert_same, text_of};

#[test]
fn every_check_has_a_section_with_its_id_and_name() {
    let text = text_of("docs/doctor.md");
    let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
    let documented: BTreeSet<_> = headings.map(str::to_owned).collect();
    let real = CHECKS.iter().map(|check| format!("{} {}", check.id, check.what)).collect();
    assert_same("docs/doctor.md", &documented, &real);
    let ids: BTreeSet<_> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(ids.len(), CHECKS.len(), "an id is given twice");
}

#[test]
fn every_check_is_provoked_by_a_test() {
    let tests = [text_of("tests/tool/doctor.rs"), text_of("redirect-user/src/doctor/inside.rs")].concat();
    let untried: Vec<_> = CHECKS.iter().map(|check| check.id).filter(|id| !tests.contains(id)).collect();
    assert!(untried.is_empty(), "no test provokes {untried:?}");
}
