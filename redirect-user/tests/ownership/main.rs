//! A model of the rules by which attachments own a cgroup's links and calls exclude each other, walked
//! through in every order of steps: two sandboxes of one pod, ADD, DEL, repeated attach and GC, of which some
//! may be killed and one may fail at any step, with one state directory or two.
//!
//! The steps are those of `attach/links.rs`, `attach/detach.rs`, `gc.rs` and `node/lock.rs`. Every rule is
//! left out once, and then something must break.

mod calls;
mod model;
mod state;

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Node, RULES, Rule};
use crate::state::{Call, NEW, OLD};

/// The situations.
fn nodes(without: Option<Rule>) -> [(&'static str, Node); 3] {
    let (add, del, gc, last) = (Call::Add, Call::Del, Call::Gc, Call::LastGc);
    let node = |calls: &[Call], dirs, old_runs| {
        // With the old sandbox to begin with, its ADD cannot be among those that are killed.
        let deaths = if old_runs { 1 } else { 2 };
        Node { calls: calls.to_vec(), dirs, old_runs, deaths, without }
    };
    [
        ("from nothing", node(&[add(OLD), add(NEW), del(OLD), del(NEW), last(0)], [0, 0], false)),
        (
            "a new sandbox beside one that runs and is attached again",
            node(&[add(NEW), Call::Again(OLD), del(OLD), del(NEW), gc(0), last(0)], [0, 0], true),
        ),
        (
            "two state directories",
            node(&[add(NEW), del(OLD), del(NEW), gc(0), gc(1), last(0), last(1)], [0, 1], true),
        ),
    ]
}

#[test]
fn with_all_rules_every_order_of_steps_is_good() {
    for (situation, node) in nodes(None) {
        let checker = node.checker().spawn_bfs().join();
        println!("{situation}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn without_any_one_of_the_rules_something_breaks() {
    for rule in RULES {
        let broken = nodes(Some(rule)).into_iter().find_map(|(situation, node)| {
            let checker = node.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
            let found = checker.discoveries();
            let failed = found.into_iter().find(|(name, _)| !name.starts_with("both sandboxes"));
            failed.map(|(name, path)| (situation, name, path.into_actions()))
        });
        let (situation, property, actions) =
            broken.unwrap_or_else(|| panic!("nothing breaks without {rule:?}"));
        println!("without {rule:?}, {situation}: not {property:?} after {} steps", actions.len());
    }
}
