//! What the tests of the chart and the tests on a node share: the chart in Helm's own engine, and the pages
//! as they are read.

pub mod helm;
pub mod page;
