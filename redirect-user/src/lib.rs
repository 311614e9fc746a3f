//! The library behind the plugin and the operator's tool.
//!
//! Table of contents, in reading order: [`policy`] says what is captured in a pod.

pub mod policy;
