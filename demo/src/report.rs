//! What the demo found, beside what was promised; as tables for people and as JSON for tests.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// Printed above the tables.
const INTRODUCTION: &str = "\
Two pods on a node that exists for this run only. Each has an application, which knows nothing of a mesh, and a
sidecar, which all of the pod's connections have to go through. \"ok\" stands where what was seen is what had to be.";

/// Everything that one run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// The sidecars: Envoy and its version, or the built-in proxy.
    pub(crate) proxy: String,
    /// The requests that were made.
    pub(crate) exchanges: Vec<Exchange>,
    /// Everything else that was promised.
    pub(crate) checks: Vec<Check>,
}

/// One request and what everybody on its way saw.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exchange {
    /// The direction, for example `client pod -> server pod`.
    pub(crate) direction: String,
    /// `IPv4` or `IPv6`.
    pub(crate) family: &'static str,
    /// What was seen, in the order of the way.
    pub(crate) facts: Vec<Fact>,
}

/// One thing that somebody saw.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fact {
    /// Who saw it.
    pub(crate) observer: String,
    /// What it is.
    pub(crate) what: &'static str,
    /// What was seen.
    pub(crate) found: String,
    /// What it has to be.
    pub(crate) promised: String,
    /// Whether it is.
    pub(crate) ok: bool,
}

/// One promise that is not about a single request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// What was promised.
    pub(crate) promise: String,
    /// What was found.
    pub(crate) found: String,
    /// Whether the promise was kept.
    pub(crate) ok: bool,
}

impl Report {
    /// Every row that is not as promised, in words.
    pub(crate) fn broken(&self) -> Vec<String> {
        let facts = self.exchanges.iter().flat_map(|exchange| {
            let head = format!("{} over {}", exchange.direction, exchange.family);
            exchange.facts.iter().filter(|fact| !fact.ok).map(move |fact| {
                let Fact { observer, what, found, promised, .. } = fact;
                format!("{head}: {observer}: {what}: found {found}, promised {promised}")
            })
        });
        let checks = self.checks.iter().filter(|check| !check.ok);
        facts.chain(checks.map(|check| format!("{}: found {}", check.promise, check.found))).collect()
    }

    /// The tables.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{INTRODUCTION}\nThe sidecars are {}.\n", self.proxy);
        let mut directions: Vec<&str> =
            self.exchanges.iter().map(|exchange| exchange.direction.as_str()).collect();
        directions.dedup();
        for direction in directions {
            let columns: Vec<&Exchange> =
                self.exchanges.iter().filter(|one| one.direction == direction).collect();
            text += &table(direction, &columns);
        }
        let width = self.checks.iter().map(|check| check.promise.len()).max().unwrap_or(0);
        text += "\nBesides\n";
        for check in &self.checks {
            let _ = writeln!(text, "  {:<4}{:<width$}  {}", mark(check.ok), check.promise, check.found);
        }
        text += if self.broken().is_empty() { "\nEverything is as promised.\n" } else { "" };
        text
    }
}

/// One direction: a line for each thing seen, a column for each address family.
fn table(title: &str, columns: &[&Exchange]) -> String {
    const LABEL: usize = 34;
    let widths: Vec<usize> = columns.iter().map(|column| cell_width(column)).collect();
    let mut text = format!("\n{title:<LABEL$}");
    for (column, width) in columns.iter().zip(&widths) {
        let _ = write!(text, "  {:<width$}", column.family);
    }
    let line = widths.iter().map(|width| width + 2).sum::<usize>() + LABEL;
    let _ = write!(text, "\n{}", "-".repeat(line));
    let mut observer = "";
    for fact in longest(columns) {
        if fact.observer != observer {
            observer = &fact.observer;
            let _ = write!(text, "\n{observer}");
        }
        let _ = write!(text, "\n  {:<width$}", fact.what, width = LABEL - 2);
        for (column, width) in columns.iter().zip(&widths) {
            let _ = write!(text, "  {:<width$}", cell(column, fact));
        }
    }
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The facts of the column that has most of them: a request that failed has fewer.
fn longest<'a>(columns: &[&'a Exchange]) -> &'a [Fact] {
    columns.iter().map(|column| column.facts.as_slice()).max_by_key(|facts| facts.len()).unwrap_or_default()
}

/// What the column has to say to a line.
fn cell(column: &Exchange, line: &Fact) -> String {
    let same = |fact: &&Fact| fact.observer == line.observer && fact.what == line.what;
    column.facts.iter().find(same).map_or("-".into(), Fact::to_cell)
}

fn cell_width(column: &Exchange) -> usize {
    column.facts.iter().map(|fact| fact.to_cell().chars().count()).max().unwrap_or(1)
}

impl Fact {
    pub(crate) fn new(
        observer: &str,
        what: &'static str,
        found: impl ToString,
        promised: String,
        ok: bool,
    ) -> Fact {
        Fact { observer: observer.into(), what, found: found.to_string(), promised, ok }
    }

    /// An address that must be exactly `promised`.
    pub(crate) fn is(observer: &str, what: &'static str, found: SocketAddr, promised: SocketAddr) -> Fact {
        Fact::new(observer, what, found, promised.to_string(), found == promised)
    }

    /// An address of which the IP must be as promised; the port was chosen by the kernel.
    pub(crate) fn is_at(observer: &str, what: &'static str, found: SocketAddr, promised: IpAddr) -> Fact {
        Fact::new(observer, what, found, format!("{promised}, any port"), found.ip() == promised)
    }

    fn to_cell(&self) -> String {
        let wrong = if self.ok { String::new() } else { format!(" (promised {})", self.promised) };
        format!("{:<4}{}{wrong}", mark(self.ok), self.found)
    }
}

fn mark(ok: bool) -> &'static str {
    if ok { "ok" } else { "NO" }
}
