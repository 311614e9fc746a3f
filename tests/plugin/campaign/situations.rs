//! What the campaign does: a verb in a situation, and what comes next.

use std::ffi::OsString;

use super::scene::{Ended, Scene};
use crate::collect::{gc, status};

/// A verb in a situation.
pub(super) struct Situation {
    pub(super) name: &'static str,
    /// Whether the pod runs, and must go on running redirected.
    pub(super) running: bool,
    /// Makes what the verb needs.
    pub(super) prepare: fn(&Scene<'_>),
    pub(super) verb: fn(&Scene<'_>, &[OsString]) -> Ended,
    /// Whether faults still open a pod here, or leave one stuck.
    pub(super) open: bool,
    /// What a runtime, or a person, does next; the number of the combination lets it take turns.
    pub(super) settle: fn(&Scene<'_>, usize) -> Vec<String>,
}

/// All of them.
pub(super) const SITUATIONS: &[Situation] = &[
    Situation {
        name: "ADD",
        open: false,
        running: false,
        prepare: nothing,
        verb: add,
        settle: repeat_add_or_del,
    },
    Situation { name: "DEL", open: false, running: false, prepare: added, verb: del, settle: repeat_del },
    Situation {
        name: "ADD again",
        open: false,
        running: true,
        prepare: nothing,
        verb: add,
        settle: nothing_more,
    },
    Situation {
        name: "ADD of a new sandbox",
        open: true,
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&scene.renewed.call("ADD").wrapped(words)),
        settle: |scene, number| {
            if number % 2 == 0 {
                scene.renewed.add();
            }
            scene.renewed.del();
            Vec::new()
        },
    },
    Situation {
        name: "DEL of an old sandbox",
        open: true,
        running: true,
        prepare: |scene| scene.renewed.add(),
        verb: |scene, words| Ended::of_call(&scene.renewed.call("DEL").wrapped(words)),
        settle: |scene, _| {
            scene.renewed.del();
            Vec::new()
        },
    },
    Situation {
        name: "CHECK",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&scene.sandbox.call("CHECK").wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "STATUS",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&status(&scene.sandbox).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "GC",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&gc(&scene.sandbox, &[("c0ffee", "eth0")]).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "GC with a list that lacks the pod",
        open: true,
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&gc(&scene.sandbox, &[]).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "gc",
        open: true,
        running: true,
        prepare: nothing,
        verb: |s, w| tool(s, w, "gc"),
        settle: nothing_more,
    },
    Situation {
        name: "upgrade",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "upgrade"),
        settle: |scene, _| repeated(tool(scene, &["env".into()], "upgrade")),
    },
    Situation {
        name: "install",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "install"),
        settle: nothing_more,
    },
    Situation {
        name: "list",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "list"),
        settle: nothing_more,
    },
    Situation {
        name: "doctor",
        open: false,
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "doctor"),
        settle: nothing_more,
    },
    Situation {
        name: "gc of another state directory",
        open: true,
        running: true,
        prepare: nothing,
        verb: |scene, words| {
            let mut command = scene.node.redirect();
            command.arg("gc").arg("--state-dir").arg(scene.node.dir().join("other-state"));
            Ended::of_tool(&command, words)
        },
        settle: nothing_more,
    },
];

fn nothing(_: &Scene<'_>) {}

fn nothing_more(_: &Scene<'_>, _: usize) -> Vec<String> {
    Vec::new()
}

fn added(scene: &Scene<'_>) {
    scene.sandbox.add();
}

fn add(scene: &Scene<'_>, words: &[OsString]) -> Ended {
    Ended::of_call(&scene.sandbox.call("ADD").wrapped(words))
}

fn del(scene: &Scene<'_>, words: &[OsString]) -> Ended {
    Ended::of_call(&scene.sandbox.call("DEL").wrapped(words))
}

fn tool(scene: &Scene<'_>, words: &[OsString], verb: &str) -> Ended {
    Ended::of_tool(scene.node.redirect().arg(verb), words)
}

/// A verb that is repeated without the fault must succeed.
pub(super) fn repeated(ended: Ended) -> Vec<String> {
    if ended.succeeded() { Vec::new() } else { vec![format!("fails when it is repeated: {ended}")] }
}

/// A runtime sends DEL after an ADD that failed; a kubelet may also try once more first.
fn repeat_add_or_del(scene: &Scene<'_>, number: usize) -> Vec<String> {
    let mut problems = Vec::new();
    if number % 2 == 0 {
        problems.extend(repeated(Ended::of_call(&scene.sandbox.call("ADD"))));
        problems.extend(repeated(Ended::of_call(&scene.sandbox.call("CHECK"))));
    }
    problems.extend(repeat_del(scene, number));
    problems
}

fn repeat_del(scene: &Scene<'_>, _: usize) -> Vec<String> {
    let mut problems = repeated(Ended::of_call(&scene.sandbox.call("DEL")));
    problems.extend(scene.left_over());
    problems
}
