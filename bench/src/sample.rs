//! Numbers from repeated measurements: medians, spread, and ratios of values that were measured side by side.

use serde::Serialize;

/// A median with the middle half of the values around it and a 95 % confidence interval of its own.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// First and third quartile of the values.
    pub(crate) quartiles: [f64; 2],
    /// Where the median would lie in 95 of 100 repetitions of the whole series (bootstrap).
    pub(crate) interval: [f64; 2],
    /// How many values.
    pub(crate) count: usize,
}

impl Summary {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Summary {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Summary {
            median: quantile(&sorted, 0.5),
            quartiles: [quantile(&sorted, 0.25), quantile(&sorted, 0.75)],
            interval: bootstrap(&sorted),
            count: sorted.len(),
        }
    }
}

/// A quantile of sorted values, between two of them where it falls between.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len().saturating_sub(1)) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let part = place - place.floor();
    sorted[below] * (1.0 - part) + sorted[above] * part
}

/// `f` of values that belong together, one from each series and the same round.
pub(crate) fn paired<const N: usize>(series: [&[f64]; N], f: impl Fn([f64; N]) -> f64) -> Vec<f64> {
    let rounds = series.iter().map(|values| values.len()).min().unwrap_or(0);
    (0..rounds).map(|round| f(series.map(|values| values[round]))).filter(|value| value.is_finite()).collect()
}

/// Medians of 1,000 random draws with replacement, the middle 95 % of them. The random numbers are the same
/// in each run, so that the same values give the same interval.
fn bootstrap(values: &[f64]) -> [f64; 2] {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[(state % values.len() as u64) as usize]
    };
    let mut medians: Vec<f64> = (0..1000)
        .map(|_| {
            let mut drawn: Vec<f64> = (0..values.len()).map(|_| draw()).collect();
            drawn.sort_by(f64::total_cmp);
            quantile(&drawn, 0.5)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    [quantile(&medians, 0.025), quantile(&medians, 0.975)]
}
