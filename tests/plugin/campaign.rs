//! The fault campaign: every verb, with everything that can go wrong at every step, while a process in the
//! pod dials out and a peer dials in every 5 ms.
//!
//! What must hold in all of them: no connection in clear, no verb that does not return, the verb repeated
//! without the fault succeeds and traffic flows again, and pods that were deleted leave nothing.
//!
//! The short form tries some combinations of each situation, evenly spread; `CAMPAIGN=all` tries every one.
//! `CAMPAIGN_PART=1/240` to `240/240` try all of them in pieces. The number of those tried is printed.
//! `CAMPAIGN_ONLY=gc` tries one situation, by its name here. As many nodes as the machine has processors take
//! turns, or as many as `CAMPAIGN_NODES=4` says. [`scene`] has the pods, [`situations`] the verbs, [`fault`]
//! what goes wrong.

mod fault;
mod scene;
mod situations;

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::cgroup::Cgroup;
use harness::cli::Outcome;
use harness::{Node, kernel_test_on_nodes};

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

/// What came of one combination.
struct Attempt {
    problems: Vec<String>,
    /// How long the verb took.
    took: Duration,
    /// Whether the fault has come about.
    met: bool,
}

/// One combination.
fn attempt(scene: &mut Scene<'_>, situation: &Situation, fault: &Fault, number: usize) -> Attempt {
    if situation.running {
        scene.start();
    }
    (situation.prepare)(scene);
    let (ended, met) = fault.run(scene.node, |words| (situation.verb)(scene, words));
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
    let problems = problems.into_iter().map(|problem| format!("{name}, {fault}: {problem}")).collect();
    Attempt { problems, took: ended.took, met }
}

/// Tries the faults of a turn; returns how many came about and how many did not, and what is wrong.
fn try_all(scene: &mut Scene<'_>, turn: &Turn, fresh: &str) -> (usize, usize, Vec<String>) {
    let situation = turn.situation;
    if situation.running {
        scene.start();
    }
    let all = faults(scene, situation);
    let possible = all.len();
    let chosen: Vec<_> = chosen(all).into_iter().skip(turn.share).step_by(turn.shares).collect();
    let (mut wrong, mut slowest, mut missed) = (Vec::new(), (Duration::ZERO, String::new()), 0);
    let begun = Instant::now();
    for (number, fault) in chosen.iter().enumerate() {
        let Attempt { problems, took, met } = attempt(scene, situation, fault, number);
        slowest = slowest.max((took, fault.to_string()));
        missed += usize::from(!met);
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
    let (tried, (took, fault)) = (chosen.len() - missed, slowest);
    println!(
        "{name}: {tried} of {possible} combinations in {:.1?}, and {missed} calls did not come; the slowest, {fault}: \
         {took:.1?}",
        begun.elapsed()
    );
    (tried, missed, wrong)
}

/// A share of a situation's combinations, which one node tries.
struct Turn {
    situation: &'static Situation,
    share: usize,
    shares: usize,
}

/// What several nodes try together: the one that is free takes the next.
struct Turns {
    all: Vec<Turn>,
    next: AtomicUsize,
    tried: AtomicUsize,
    missed: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Turns {
    /// All situations, or the one that `CAMPAIGN_ONLY` names; in the short form each in one share.
    fn new(nodes: usize) -> Turns {
        let short = ["CAMPAIGN", "CAMPAIGN_PART"].iter().all(|name| std::env::var_os(name).is_none());
        let shares = if short { 1 } else { nodes };
        let only = std::env::var("CAMPAIGN_ONLY").ok();
        let wanted = |one: &&Situation| only.as_ref().is_none_or(|name| name == one.name);
        let shares_of = |situation| (0..shares).map(move |share| Turn { situation, share, shares });
        let all: Vec<_> = SITUATIONS.iter().filter(wanted).flat_map(shares_of).collect();
        assert!(!all.is_empty(), "there is no situation {only:?}");
        Turns { all, next: 0.into(), tried: 0.into(), missed: 0.into(), wrong: Mutex::default() }
    }

    fn take(&self, node: &Node) {
        let mut scene = Scene::new(node);
        scene.sandbox.add();
        scene.sandbox.del();
        let fresh = scene.settled_namespace();
        while let Some(turn) = self.all.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let (count, missed, problems) = try_all(&mut scene, turn, &fresh);
            self.tried.fetch_add(count, Ordering::Relaxed);
            self.missed.fetch_add(missed, Ordering::Relaxed);
            self.wrong.lock().expect("no thread panics with it").extend(problems);
        }
        assert_eq!(Outcome::of(node.redirect().arg("uninstall")).code, Some(0));
        let left = node.bpffs().join("redirect-cni");
        assert!(!left.exists(), "uninstall leaves {}", left.display());
    }
}

/// How many nodes are used at once.
fn nodes() -> usize {
    match std::env::var("CAMPAIGN_NODES") {
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("CAMPAIGN_NODES={number} is no number")),
        Err(_) => std::thread::available_parallelism().map_or(1, NonZero::get).min(4),
    }
}

#[test]
fn nothing_that_goes_wrong_opens_a_pod_or_leaves_one_stuck() {
    let turns = Turns::new(nodes());
    kernel_test_on_nodes(nodes().min(turns.all.len()), |node| turns.take(node));
    let (tried, wrong) = (turns.tried.into_inner(), turns.wrong.into_inner().expect("no thread panicked"));
    println!("{tried} combinations tried");
    let missed = turns.missed.into_inner();
    assert!(
        missed * 4 <= tried,
        "the faults of {missed} combinations did not come about, of {tried} they did"
    );
    assert!(wrong.is_empty(), "{tried} combinations:\n{}", wrong.join("\n"));
}
