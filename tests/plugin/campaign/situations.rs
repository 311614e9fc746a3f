//! What the campaign does: a verb in a situation, and what comes next.

use std::ffi::OsString;

use harness::cli::Outcome;

use super::scene::{Ended, Scene};
use crate::collect::{gc, gc_elsewhere, status};
use crate::sandbox::Sandbox;

/// A verb in a situation.
pub(super) struct Situation {
    pub(super) name: &'static str,
    /// Whether the pod runs, and must go on running redirected.
    pub(super) running: bool,
    /// Makes what the verb needs.
    pub(super) prepare: fn(&Scene<'_>),
    pub(super) verb: fn(&Scene<'_>, &[OsString]) -> Ended,
    /// What a runtime, or a person, does next; the number of the combination lets it take turns.
    pub(super) settle: fn(&Scene<'_>, usize) -> Vec<String>,
}

/// All of them.
pub(super) const SITUATIONS: &[Situation] = &[
    Situation { name: "ADD", running: false, prepare: nothing, verb: add, settle: repeat_add_or_del },
    Situation { name: "DEL", running: false, prepare: added, verb: del, settle: repeat_del },
    Situation { name: "ADD again", running: true, prepare: nothing, verb: add, settle: nothing_more },
    Situation {
        name: "ADD of a new sandbox",
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
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&scene.sandbox.call("CHECK").wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "STATUS",
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&status(&scene.sandbox).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "GC",
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&gc(&scene.sandbox, &[("c0ffee", "eth0")]).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "GC with a list that lacks the pod",
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_call(&gc(&scene.sandbox, &[]).wrapped(words)),
        settle: nothing_more,
    },
    Situation {
        name: "gc",
        running: true,
        prepare: nothing,
        verb: |s, w| tool(s, w, "gc"),
        settle: nothing_more,
    },
    Situation {
        name: "upgrade",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "upgrade"),
        settle: |scene, _| repeated(tool(scene, &["env".into()], "upgrade")),
    },
    Situation {
        name: "install",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "install"),
        settle: nothing_more,
    },
    Situation {
        name: "repair",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "repair"),
        settle: nothing_more,
    },
    // It refuses, as the pod runs.
    Situation {
        name: "uninstall",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "uninstall"),
        settle: nothing_more,
    },
    Situation {
        name: "ADD of a pod whose cgroup and namespace vanish meanwhile",
        running: true,
        prepare: nothing,
        verb: |scene, words| {
            let pod = scene.node.pod("vanishing");
            let call = Sandbox::new(scene.node, &pod, &scene.vanished().id).call("ADD").wrapped(words);
            let adding = std::thread::spawn(move || Ended::of_call(&call));
            drop(pod);
            adding.join().expect("ADD is a process")
        },
        settle: |scene, _| {
            let mut problems = repeated(Ended::of_call(&scene.vanished().call("DEL")));
            problems.extend(only_the_pod(scene));
            problems
        },
    },
    Situation {
        name: "list",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "list"),
        settle: nothing_more,
    },
    Situation {
        name: "doctor",
        running: true,
        prepare: nothing,
        verb: |scene, words| tool(scene, words, "doctor"),
        settle: nothing_more,
    },
    Situation {
        name: "DEL of a pod whose cgroup and namespace are gone",
        running: true,
        prepare: vanished,
        verb: |scene, words| Ended::of_call(&scene.vanished().call("DEL").wrapped(words)),
        settle: |scene, _| {
            let mut problems = repeated(Ended::of_call(&scene.vanished().call("DEL")));
            problems.extend(only_the_pod(scene));
            problems
        },
    },
    Situation {
        name: "gc of a pod whose cgroup and namespace are gone",
        running: true,
        prepare: vanished,
        verb: |scene, words| tool(scene, words, "gc"),
        settle: |scene, _| {
            let mut problems = repeated(tool(scene, &["env".into()], "gc"));
            problems.extend(only_the_pod(scene));
            problems
        },
    },
    Situation {
        name: "ADD beside a gc of another state directory",
        running: false,
        prepare: nothing,
        verb: |scene, words| {
            let mut gc = gc_elsewhere(scene.node);
            let other = std::thread::spawn(move || (0..5).for_each(|_| drop(Outcome::of(&mut gc))));
            let ended = add(scene, words);
            other.join().expect("gc is a process");
            ended
        },
        settle: |scene, number| {
            let mut problems = Vec::new();
            if number % 2 == 0 {
                problems.extend(repeated(Ended::of_call(&scene.sandbox.call("ADD"))));
                drop(Ended::of_tool(&gc_elsewhere(scene.node), &["env".into()]));
                problems.extend(repeated(Ended::of_call(&scene.sandbox.call("CHECK"))));
            }
            problems.extend(repeat_del(scene, number));
            problems
        },
    },
    Situation {
        name: "gc of another state directory",
        running: true,
        prepare: nothing,
        verb: |scene, words| Ended::of_tool(&gc_elsewhere(scene.node), words),
        settle: nothing_more,
    },
];

fn nothing(_: &Scene<'_>) {}

/// A pod that was enrolled and then went, cgroup and namespace, without DEL.
fn vanished(scene: &Scene<'_>) {
    let pod = scene.node.pod("vanished");
    Sandbox::new(scene.node, &pod, &scene.vanished().id).add();
}

/// Nothing is attached but the pod that runs.
fn only_the_pod(scene: &Scene<'_>) -> Option<String> {
    let attached = scene.node.attached();
    (attached != [scene.sandbox.id.as_str()]).then(|| format!("attached are {attached:?}"))
}

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
    if number.is_multiple_of(2) {
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
