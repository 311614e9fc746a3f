//! What was measured, as it goes into the JSON, the report and the charts.

use serde::Serialize;

use crate::rules::Backend;
use crate::sample::{Summary, paired};
use crate::scene::Mode;

/// What the numbers of a measure are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Nanos,
    Micros,
    Millis,
    Kibibytes,
    GigabytesPerSecond,
    PerSecond,
    Percent,
}

impl Unit {
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Unit::Nanos => "ns",
            Unit::Micros => "µs",
            Unit::Millis => "ms",
            Unit::Kibibytes => "KiB",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::PerSecond => "1/s",
            Unit::Percent => "%",
        }
    }
}

/// One quantity in several variants that were measured side by side.
#[derive(Debug, Serialize)]
pub(crate) struct Measure {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) series: Vec<Series>,
}

/// One variant.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) label: String,
    pub(crate) summary: Summary,
    /// In the order of the rounds: the values of one round belong together.
    pub(crate) values: Vec<f64>,
}

impl Measure {
    pub(crate) fn new<L: Into<String>>(
        id: &str,
        title: &str,
        unit: Unit,
        series: impl IntoIterator<Item = (L, Vec<f64>)>,
    ) -> Measure {
        let series = series
            .into_iter()
            .map(|(label, values)| Series { label: label.into(), summary: Summary::of(&values), values })
            .collect();
        Measure { id: id.to_owned(), title: title.to_owned(), unit, series }
    }

    /// The values of a variant.
    pub(crate) fn values(&self, label: &str) -> Option<&[f64]> {
        self.series.iter().find(|series| series.label == label).map(|series| series.values.as_slice())
    }

    /// The values of a mode.
    pub(crate) fn mode(&self, mode: Mode) -> Option<&[f64]> {
        self.values(mode.label())
    }

    /// What we add to the unredirected pod, in terms of what iptables-legacy adds, round by round.
    pub(crate) fn added_ratio(&self, of: Mode) -> Option<Summary> {
        let series = [Mode::None, Mode::Iptables(Backend::Legacy), of].map(|mode| self.mode(mode));
        let [Some(none), Some(legacy), Some(of)] = series else { return None };
        let ratios = paired([none, legacy, of], |[none, legacy, of]| (of - none) / (legacy - none));
        (!ratios.is_empty()).then(|| Summary::of(&ratios))
    }

    /// A variant in terms of another, round by round.
    pub(crate) fn ratio(&self, of: &str, to: &str) -> Option<Summary> {
        let ratios = paired([self.values(of)?, self.values(to)?], |[of, to]| of / to);
        (!ratios.is_empty()).then(|| Summary::of(&ratios))
    }
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) measures: Vec<Measure>,
    /// Size of the plugin's binary.
    pub(crate) plugin_bytes: Option<u64>,
}

impl Results {
    pub(crate) fn add(&mut self, measure: Measure) {
        eprintln!("    {}", measure.title);
        for series in &measure.series {
            let Summary { median, quartiles: [low, high], .. } = series.summary;
            eprintln!(
                "      {:<24} {median:>10.3} {} ({low:.3} to {high:.3})",
                series.label,
                measure.unit.symbol()
            );
        }
        self.measures.push(measure);
    }

    /// The measure of that id.
    pub(crate) fn get(&self, id: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.id == id)
    }
}
