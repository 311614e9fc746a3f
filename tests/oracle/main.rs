//! The oracle: the same connections in a pod with the rules that Istio loads into iptables and in a pod of
//! ours must come to the same end, but for the differences that are meant.
//!
//! Modules in reading order: [`scenario`] is what is tried and [`outcome`] what comes of it; [`enforce`]
//! brings Istio's rules or our programs into a pod; [`world`] is a pod with everybody in it, [`dial`] tries a
//! connection there, [`pair`] in both; [`differences`] is the table of what is meant, [`foretold`] what
//! `redirect explain` says beforehand. [`rows`], [`outbound_rows`] and [`inbound_rows`] are the fixed
//! scenarios, [`random`] makes others and shrinks what fails. [`tproxy`] is what the application sees behind
//! a sidecar in TPROXY mode; in [`left_over`] both are in one pod. [`measured`] is the benchmark, which
//! stands on the same rules.
//!
//! Run as root with `--test-threads=1`. `ORACLE_SEED` and `ORACLE_COUNT` repeat or prolong the random part:
//! `ORACLE_COUNT=3000` is its long form.

mod dial;
mod differences;
mod dns_ways;
mod enforce;
mod foretold;
mod inbound_rows;
mod left_over;
mod measured;
mod outbound_rows;
mod outcome;
mod pair;
mod random;
mod rows;
mod scenario;
mod tproxy;
mod wider_rows;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use harness::kernel_test;

use differences::DIFFERENCES;
use outcome::Outcome;
use pair::Pairs;
use random::{Scenarios, simpler};
use rows::Row;
use scenario::{Connection, Setup};

/// One line for each connection of a row that did not come to the end that it must.
fn judge(pair: &mut Pairs<'_>, row: &Row, met: &mut BTreeSet<&'static str>) -> Vec<String> {
    let mut wrong = Vec::new();
    for connection in &row.connections {
        let compared = pair.compare(&row.setup, connection);
        let mut complain = |what: String| {
            wrong.push(format!(
                "{}: {connection}: {what}\n    iptables: {}\n    ours:     {}",
                row.name, compared.iptables, compared.ours
            ));
        };
        match &compared.verdict {
            Ok(differences) => met.extend(differences),
            Err(field) => complain(format!("{field:?} differs, which is not meant ({})", row.setup)),
        }
        for (world, outcome) in [("iptables", &compared.iptables), ("ours", &compared.ours)] {
            let got = match outcome {
                Outcome::Reached(reached) => Some(reached.server),
                Outcome::Failed(_) | Outcome::Silence => None,
            };
            if row.server.is_some() && row.server != got {
                complain(format!("{world}: expected {:?}", row.server));
            }
        }
    }
    wrong
}

#[test]
fn the_truth_tables_and_what_they_leave_open() {
    kernel_test(|node| {
        let mut pair = Pairs::new(node);
        let named = |table: &str, mut rows: Vec<Row>| {
            rows.iter_mut().for_each(|row| row.name = format!("{table} {}", row.name));
            rows
        };
        let rows = [
            named("outbound", outbound_rows::everything_included()),
            named("outbound", outbound_rows::some_included()),
            named("outbound", outbound_rows::dns()),
            named("inbound", inbound_rows::inbound()),
            named("TPROXY", inbound_rows::tproxy()),
            rows::beyond(),
            wider_rows::agreed(),
            wider_rows::open(),
        ];
        let mut met = BTreeSet::new();
        let rows = rows.iter().flatten();
        let wrong: Vec<_> = rows.flat_map(|row| judge(&mut pair, row, &mut met)).collect();
        pair.assert_guard_idle();
        assert!(wrong.is_empty(), "{} connections came to a wrong end:\n{}", wrong.len(), wrong.join("\n"));
        let all: BTreeSet<_> = DIFFERENCES.iter().map(|difference| difference.id).collect();
        assert_eq!(met, all, "every meant difference must occur in the fixed scenarios");
    });
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The smallest setup, found step by step, in which the connection still comes to different ends.
fn shrink(pair: &mut Pairs<'_>, setup: Setup, connection: &Connection) -> Setup {
    let mut smallest = setup;
    while let Some(smaller) =
        simpler(&smallest).into_iter().find(|setup| pair.compare(setup, connection).verdict.is_err())
    {
        smallest = smaller;
    }
    smallest
}

/// How many connections are tried in one setup.
const CONNECTIONS: usize = 5;

#[test]
fn random_policies_and_connections() {
    let seed = number("ORACLE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.expect("the clock is right").as_nanos() as u64 % 1_000_000_007
    });
    let count = number("ORACLE_COUNT").unwrap_or(300) as usize;
    println!("ORACLE_SEED={seed} ORACLE_COUNT={count} repeats this run");
    kernel_test(|node| {
        let mut pair = Pairs::new(node);
        let mut scenarios = Scenarios::new(seed);
        let mut ends = BTreeMap::new();
        for _ in 0..count.div_ceil(CONNECTIONS) {
            let (setup, connections) = scenarios.next(CONNECTIONS);
            for connection in connections {
                let compared = pair.compare(&setup, &connection);
                if let Err(field) = compared.verdict {
                    let smallest = shrink(&mut pair, setup, &connection);
                    panic!(
                        "seed {seed}: {connection}: {field:?} differs, which is not meant\n    iptables: {}\n    \
                         ours:     {}\n    smallest setup: {smallest}",
                        compared.iptables, compared.ours
                    );
                }
                *ends.entry(end(&compared.ours)).or_insert(0) += 1;
            }
        }
        pair.assert_guard_idle();
        println!("{count} connections: {ends:?}");
    });
}

/// An outcome in a word or two.
fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reached(reached) => reached.server.kind().to_owned(),
        Outcome::Failed(errno) => format!("{errno:?}"),
        Outcome::Silence => "silence".to_owned(),
    }
}
