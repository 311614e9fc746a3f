//! What the tests of the chart and the test of the image share: the chart in Helm's own engine.

pub mod helm;
