//! The node's mesh: which pods talk to which addresses, and by which verdict.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::page;
use super::picture::{shortened, tips};
use crate::seen::{Flow, Seen};

/// How many lines a picture can hold; the table has all.
const MOST: usize = 30;
/// How many letters of a name fit into a box.
const IN_A_BOX: usize = 38;

/// The page.
pub(crate) fn draw(seen: &Seen, every: Option<u64>) -> Markup {
    let body = html! {
        p.sub { (seen.sum()) " connections in " (seen.seconds) " seconds"
            @if seen.lost > 0 { ", " (seen.lost) " more came faster than they could be read" } }
        figure {
            div.scroll { (picture(seen)) }
            figcaption.legend {
                span.good { "\u{2192} through the sidecar" }
                span.plain { "\u{21e2} left alone" }
                span.bad { "\u{2192} refused or stopped" }
                span.audit { "\u{2192} would be stopped" }
            }
        }
        div id="tables" { h2 { "Connections" } (table(seen)) }
    };
    page("Which pods talk to which addresses", every, &body)
}

/// Sources on the left, destinations on the right, the busiest first.
fn picture(seen: &Seen) -> Markup {
    let flows: Vec<_> = seen.busiest().into_iter().take(MOST).collect();
    let (left, right) = (column(&flows, |flow| &flow.from), column(&flows, |flow| &flow.to));
    let rows = left.len().max(right.len()).max(1);
    let height = rows as i32 * 44 + 30;
    let row = |index: usize| index as i32 * 44 + 40;
    html! {
        svg viewBox=(format!("0 0 1000 {height}")) role="img" aria-label="Sources on the left, destinations on the right" {
            (tips())
            @if flows.is_empty() { text x="500" y="40" text-anchor="middle" { "No pod has dialled." } }
            @for (name, index) in &left {
                rect.box x="10" y=(row(*index) - 16) width="300" height="32" rx="6" {}
                text x="22" y=(row(*index) + 5) { (shortened(name, IN_A_BOX)) }
            }
            @for (name, index) in &right {
                rect.box x="690" y=(row(*index) - 16) width="300" height="32" rx="6" {}
                text x="702" y=(row(*index) + 5) { (shortened(name, IN_A_BOX)) }
            }
            @for (place, (flow, count)) in flows.iter().enumerate() {
                (line(flow, *count, row(left[flow.from.as_str()]), row(right[flow.to.as_str()]), twins(&flows[..place], flow)))
            }
        }
    }
}

fn column<'a>(flows: &[(&'a Flow, u64)], of: fn(&Flow) -> &String) -> BTreeMap<&'a str, usize> {
    let mut places = BTreeMap::new();
    for (flow, _) in flows {
        let next = places.len();
        places.entry(of(flow).as_str()).or_insert(next);
    }
    places
}

/// How many lines between the same two are there already.
fn twins(before: &[(&Flow, u64)], flow: &Flow) -> i32 {
    before.iter().filter(|(other, _)| other.from == flow.from && other.to == flow.to).count() as i32
}

/// A curve from left to right. The count stands where it has most room: three fifths of the way.
fn line(flow: &Flow, count: u64, from: i32, to: i32, twin: i32) -> Markup {
    let what = format!("{} to {}, {} ({}): {count}", flow.from, flow.to, flow.verdict, flow.rule);
    let width = 1.5 + (count as f64).log10() * 1.5;
    let (from, to) = (from + twin * 7, to + twin * 7);
    let label = (from * 352 + to * 648) / 1000 + twin * 12;
    html! {
        g class=(flow.class()) tabindex="0" role="img" aria-label=(what) {
            title { (what) }
            path.arrow d=(format!("M310 {from} C480 {from} 520 {to} 686 {to}")) style=(format!("stroke-width: {width:.1}"))
                marker-end=(format!("url(#tip-{})", flow.class())) {}
            text.count x="531" y=(label - 7) text-anchor="middle" { (count) }
        }
    }
}

fn table(seen: &Seen) -> Markup {
    html! {
        table {
            thead { tr { th { "From" } th { "To" } th { "Verdict" } th { "Rule" } th.number { "Connections" } } }
            tbody { @for (flow, count) in seen.busiest() {
                tr {
                    td { (flow.from) }
                    td { (flow.to) }
                    td class=(flow.class()) { (flow.verdict) }
                    td { code { (flow.rule) } }
                    td.number { (count) }
                }
            } }
        }
    }
}
