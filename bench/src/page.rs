//! The page: one HTML file without anything from elsewhere, with conditions, marks, charts and every value.

use std::fmt::Write as _;

use crate::chart::{self, escaped, figures, interval};
use crate::report::Report;
use crate::results::{Measure, Series};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1b2328;--back:#fff;--line:#c8d0d5;--bad:#b3261e}\
@media(prefers-color-scheme:dark){:root{--text:#e4e9ec;--back:#14181b;--line:#3a444b;--bad:#ff8a80}}\
body{font:16px/1.5 sans-serif;color:var(--text);background:var(--back);max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid var(--line);padding:.2rem .6rem}\
td+td,th+th{text-align:right}svg{max-width:100%;height:auto;border-radius:4px}.missed,.busy{color:var(--bad)}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}summary{cursor:pointer}";

/// The whole page.
pub(crate) fn html(report: &Report<'_>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>redirect-cni: what redirection costs</title><style>{STYLE}</style></head><body>\n\
         <h1>What redirection costs</h1>\n\
         <p>Pods side by side in one run: not redirected, with Istio's rules in iptables and in nftables, and \
         with redirect-cni. <code>cargo xtask bench --publish</code> makes this page.</p>\n"
    );
    conditions(&mut page, report);
    marks(&mut page, report);
    for measure in &report.results.measures {
        section(&mut page, measure, report.machine.busy());
    }
    page.push_str("</body></html>\n");
    page
}

fn conditions(page: &mut String, report: &Report<'_>) {
    let machine = report.machine;
    let kind = if machine.virtualised { ", virtual machine" } else { "" };
    let rows = [
        ("Date", machine.date.clone()),
        ("CPU", format!("{} x {}{kind}", machine.cpus, machine.cpu)),
        ("Memory", format!("{} MiB", machine.memory_mib)),
        ("System", machine.system.clone()),
        ("Kernel", format!("Linux {}", machine.kernel)),
        ("iptables", machine.iptables.clone()),
        ("nftables", machine.nftables.clone()),
        ("Envoy", machine.envoy.clone()),
        ("redirect-cni", machine.ours.clone()),
        ("Load average", format!("{:.1} at the start, {:.1} at the end", machine.load[0], machine.load[1])),
        ("Duration", format!("{:.0} s", report.seconds)),
    ];
    page.push_str("<h2>Conditions</h2>\n<table>");
    for (name, value) in rows {
        let _ = write!(page, "<tr><th>{name}</th><td>{}</td></tr>", escaped(&value));
    }
    page.push_str("</table>\n");
    if machine.busy() {
        page.push_str(
            "<p class=\"busy\"><strong>The machine was busy when the run began.</strong> Only ratios within a \
             round mean something; intervals are marked with ≈.</p>\n",
        );
    }
}

fn marks(page: &mut String, report: &Report<'_>) {
    if report.goals.is_empty() {
        return;
    }
    page.push_str("<h2>Marks</h2>\n<table><tr><th>mark</th><th>value</th><th>95 % interval</th>");
    page.push_str("<th>at most</th><th></th></tr>\n");
    for goal in &report.goals {
        let interval = goal.interval.map_or_else(String::new, |range| interval(range, report.machine.busy()));
        let verdict = if goal.met { "met" } else { "<strong class=\"missed\">missed</strong>" };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{interval}</td><td>{}</td><td>{verdict}</td></tr>",
            escaped(&goal.what),
            figures(goal.value),
            goal.at_most
        );
    }
    page.push_str("</table>\n");
}

fn section(page: &mut String, measure: &Measure, busy: bool) {
    let _ =
        write!(page, "<h2 id=\"{}\">{}</h2>\n{}", measure.id, escaped(&measure.title), chart::svg(measure));
    let unit = measure.unit.symbol();
    let _ = write!(
        page,
        "<table><tr><th>{unit}</th><th>median</th><th>quartiles</th><th>95 % interval</th></tr>"
    );
    for Series { label, summary, .. } in &measure.series {
        let [low, high] = summary.quartiles;
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{} to {}</td><td>{}</td></tr>",
            escaped(label),
            figures(summary.median),
            figures(low),
            figures(high),
            interval(summary.interval, busy)
        );
    }
    page.push_str("</table>\n<details><summary>Every value, in the order of the rounds</summary><pre>");
    for series in &measure.series {
        let values: Vec<_> = series.values.iter().map(|value| figures(*value)).collect();
        let _ = writeln!(page, "{}: {}", escaped(&series.label), values.join(" "));
    }
    page.push_str("</pre></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::Goal;
    use crate::machine::Machine;
    use crate::results::{Results, Unit};

    fn page(load: f64) -> String {
        let machine = Machine { load: [load, 9.0], cpus: 2, ..Machine::default() };
        let mut results = Results::default();
        let series = [("not <redirected>", vec![1.0, 2.0, 3.0]), ("redirect-cni", vec![2.0, 3.0, 4.0])];
        results.measures.push(Measure::new("setup", "New connections", Unit::Micros, series));
        let goal =
            Goal { what: "a < b".into(), value: 2.0, interval: Some([1.0, 3.0]), at_most: 1.0, met: false };
        let report =
            Report { machine: &machine, seconds: 1.0, goals: vec![goal], programs: &[], results: &results };
        html(&report)
    }

    #[test]
    fn every_value_is_on_the_page_and_nothing_comes_from_elsewhere() {
        let page = page(0.1);
        assert!(page.contains("not &lt;redirected&gt;: 1.000 2.000 3.000"), "{page}");
        assert!(page.contains("redirect-cni: 2.000 3.000 4.000"), "{page}");
        assert!(page.contains("missed") && page.contains("a &lt; b"), "{page}");
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains('≈') && !page.contains("was busy"), "{page}");
    }

    #[test]
    fn a_run_on_a_busy_machine_says_so() {
        let page = page(1.5);
        assert!(page.contains("was busy") && page.contains("≈ 1.000 to 3.000"), "{page}");
    }
}
