//! Charts as SVG, without a library: a bar per variant with the middle half of its values as a whisker.

use std::fmt::Write as _;

use crate::results::{Measure, Series};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const NUMBERS: f64 = 150.0;
const BAR: f64 = 22.0;
const STEP: f64 = 34.0;
const TOP: f64 = 44.0;
/// Ours, and everybody else.
const COLOURS: [&str; 2] = ["#0b6e99", "#9aa5ad"];

/// A chart of a measure.
pub(crate) fn svg(measure: &Measure) -> String {
    let height = TOP + STEP * measure.series.len() as f64 + 8.0;
    let most =
        measure.series.iter().map(|s| s.summary.quartiles[1].max(s.summary.median)).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LABELS - NUMBERS) / most } else { 0.0 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"26\" font-size=\"15\" font-weight=\"bold\" fill=\"#1b2328\">{}</text>\n",
        escaped(&measure.title)
    );
    for (index, series) in measure.series.iter().enumerate() {
        bar(&mut svg, series, TOP + STEP * index as f64, scale, measure.unit.symbol());
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, series: &Series, top: f64, scale: f64, unit: &str) {
    let middle = top + BAR / 2.0;
    let length = (series.summary.median * scale).max(0.0);
    let [low, high] = series.summary.quartiles.map(|value| LABELS + (value * scale).max(0.0));
    let colour = COLOURS[usize::from(!series.label.starts_with("redirect-cni"))];
    let text = middle + 4.5;
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\" fill=\"#1b2328\">{}</text>\n\
         <rect x=\"{LABELS}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>\n\
         <path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\" stroke=\"#1b2328\" fill=\"none\"/>\n\
         <text x=\"{:.1}\" y=\"{text:.1}\" fill=\"#1b2328\">{}</text>",
        LABELS - 8.0,
        escaped(&series.label),
        middle - 4.0,
        middle - 4.0,
        high.max(LABELS + length) + 8.0,
        escaped(&format!("{} {unit}", figures(series.summary.median))),
    );
}

/// An interval, marked where other work disturbed the run.
pub(crate) fn interval([low, high]: [f64; 2], busy: bool) -> String {
    format!("{}{} to {}", if busy { "≈ " } else { "" }, figures(low), figures(high))
}

/// Four significant figures, without an exponent.
pub(crate) fn figures(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = if magnitude >= 1000.0 || magnitude == 0.0 {
        0
    } else if magnitude >= 100.0 {
        1
    } else if magnitude >= 10.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

/// Text for HTML and SVG.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
