//! The node's agent: answers the plugin's questions about this node's pods.
//!
//! [`server`] is the socket, [`manifests`] a source of pods that reads files.

pub mod manifests;
pub mod server;
