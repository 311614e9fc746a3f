//! The fault campaign: every verb, with everything that can go wrong at every step, while a process in the
//! pod dials out and a peer dials in every 5 ms.
//!
//! What must hold in all of them: no connection in clear, no verb that does not return, the verb repeated
//! without the fault succeeds and traffic flows again, and pods that were deleted leave nothing.
//!
//! The short form tries some combinations of each situation, evenly spread; `CAMPAIGN=all` tries every one.
//! `CAMPAIGN_PART=1/240` to `240/240` try all of them in pieces. The number of those tried is printed.
//! `CAMPAIGN_ONLY=gc` tries one situation, by its name here. [`scene`] has the pods, [`situations`] the
//! verbs, [`fault`] what goes wrong.

mod fault;
mod scene;
mod situations;

use std::time::Duration;

use harness::cgroup::Cgroup;
use harness::cli::Outcome;
use harness::kernel_test;

use crate::crash::points;
use fault::{Fault, Litter, count};
use scene::{Ended, Scene};
use situations::{SITUATIONS, Situation, repeated};

/// Combinations of each situation in the short form.
const SHORT: usize = 10;
/// So many failures are shown; the campaign then ends, as one fault tends to show in very many combinations.
const ENOUGH: usize = 40;

/// Everything that can go wrong with the verb of this situation.
fn faults(scene: &Scene<'_>, situation: &Situation) -> Vec<Fault> {
    (situation.prepare)(scene);
    let calls = count(scene.node, |words| (situation.verb)(scene, words));
    (situation.settle)(scene, 1);
    let mut faults: Vec<_> = points().into_iter().map(Fault::Point).collect();
    for (call, times) in &calls {
        for nth in 1..=*times {
            faults.push(Fault::Killed(call.clone(), nth));
            faults.extend(["EPERM", "ENOSPC"].map(|errno| Fault::Fails(call.clone(), nth, errno)));
        }
    }
    let mounts = [scene.node.bpffs().to_owned(), Cgroup::mount_point()];
    faults.extend(mounts.map(Fault::Unmounted));
    faults.extend(Litter::ALL.map(Fault::Litter));
    faults.extend(["PODS", "SETS", "OWN", "CLAIMS", "GUARD"].map(Fault::Full));
    faults.push(Fault::OtherVersion);
    faults
}

/// Some of them, evenly spread, or all; or one part of many, where `CAMPAIGN_PART=3/40` asks for it.
fn chosen(faults: Vec<Fault>) -> Vec<Fault> {
    if let Ok(part) = std::env::var("CAMPAIGN_PART") {
        let numbers = part.split_once('/').map(|(part, of)| (part.parse(), of.parse()));
        let Some((Ok(part @ 1..), Ok(of @ 1..))) = numbers else { panic!("CAMPAIGN_PART={part} is not N/M") };
        return faults.into_iter().skip(part - 1).step_by(of).collect();
    }
    let count = match std::env::var("CAMPAIGN") {
        Err(_) => SHORT,
        Ok(all) if all == "all" => faults.len(),
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("CAMPAIGN={number} is no number, nor `all`")),
    };
    if faults.len() <= count || count < 2 {
        return faults;
    }
    (0..count).map(|index| faults[index * (faults.len() - 1) / (count - 1)].clone()).collect()
}

/// One combination; returns what is wrong afterwards, and how long the verb took.
fn attempt(
    scene: &mut Scene<'_>,
    situation: &Situation,
    fault: &Fault,
    number: usize,
) -> (Vec<String>, Duration) {
    if situation.running {
        scene.start();
    }
    (situation.prepare)(scene);
    let ended = fault.run(scene.node, |words| (situation.verb)(scene, words));
    let mut problems: Vec<_> = ended.problem().into_iter().collect();
    problems.extend(scene.in_clear());
    problems.extend((situation.settle)(scene, number));
    if situation.running {
        problems.extend(scene.in_clear());
        // What the fault has broken is mended by the next ADD, at the latest.
        if !Ended::of_call(&scene.sandbox.call("CHECK")).succeeded() {
            problems.extend(repeated(Ended::of_call(&scene.sandbox.call("ADD"))));
            problems.extend(repeated(Ended::of_call(&scene.sandbox.call("CHECK"))));
        }
        problems.extend(scene.cut_off());
        problems.extend(scene.in_clear());
    }
    problems.truncate(3);
    let name = situation.name;
    (problems.into_iter().map(|problem| format!("{name}, {fault}: {problem}")).collect(), ended.took)
}

/// Tries the faults of a situation; returns their number, and what is wrong.
fn try_all(scene: &mut Scene<'_>, situation: &Situation, fresh: &str) -> (usize, Vec<String>) {
    if situation.running {
        scene.start();
    }
    let all = faults(scene, situation);
    let (possible, chosen) = (all.len(), chosen(all));
    let (mut wrong, mut slowest) = (Vec::new(), (Duration::ZERO, String::new()));
    for (number, fault) in chosen.iter().enumerate() {
        let (problems, took) = attempt(scene, situation, fault, number);
        slowest = slowest.max((took, fault.to_string()));
        if !problems.is_empty() {
            // The next one does not suffer from it.
            scene.stop();
        }
        wrong.extend(problems);
        assert!(wrong.len() < ENOUGH, "after {} combinations:\n{}", number + 1, wrong.join("\n"));
    }
    scene.stop();
    let name = situation.name;
    wrong.extend(scene.left_over().map(|left| format!("{name}: {left}")));
    let now = scene.namespace();
    if now != fresh {
        wrong.push(format!("{name}: the namespace was\n{fresh}and is\n{now}"));
    }
    let (tried, (took, fault)) = (chosen.len(), slowest);
    println!("{name}: {tried} of {possible} combinations; the slowest, {fault}: {took:.1?}");
    (tried, wrong)
}

#[test]
fn nothing_that_goes_wrong_opens_a_pod_or_leaves_one_stuck() {
    kernel_test(|node| {
        let mut scene = Scene::new(node);
        scene.sandbox.add();
        scene.sandbox.del();
        let fresh = scene.settled_namespace();
        let only = std::env::var("CAMPAIGN_ONLY").ok();
        let wanted = |one: &&Situation| only.as_ref().is_none_or(|name| name == one.name);
        let (mut tried, mut wrong) = (0, Vec::new());
        for situation in SITUATIONS.iter().filter(wanted) {
            let (count, problems) = try_all(&mut scene, situation, &fresh);
            tried += count;
            wrong.extend(problems);
        }
        println!("{tried} combinations tried");
        assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
        let left = node.bpffs().join("redirect-cni");
        assert!(!left.exists(), "uninstall leaves {}", left.display());
        assert!(wrong.is_empty(), "{tried} combinations:\n{}", wrong.join("\n"));
    });
}
