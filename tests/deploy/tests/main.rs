//! What is shipped, held against what it is for: the chart through Helm's own engine and the API's schemas,
//! its rights and privileges against what the agent uses, its rules and pictures against what there is.

mod chart;
mod documents;
mod kubectl;
mod metrics;
mod packages;
mod rights;
mod units;
