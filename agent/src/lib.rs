//! The node's agent: makes a node ready for pods with sidecars and keeps it so. No running pod needs it.
//!
//! [`run`] starts everything. [`watch`] knows this node's pods from the API server ([`api`] is the way
//! there), [`manifests`] from files; [`pod`] is what both keep of a pod. [`server`] answers the plugin's
//! questions, [`logs`] takes its lines. [`conflist`] puts the plugin and its entry in their places and keeps
//! them there. [`repair`] looks after pods that run, by the plugin's own [`rules`]. [`state`] is what is
//! known of the node, [`metrics`] what is shown of it, and [`http`] where. [`trial`] tries programs before
//! pods get them. [`memory`] keeps the process small.

pub mod api;
pub mod conflist;
pub mod http;
pub mod logs;
pub mod manifests;
pub mod memory;
pub mod metrics;
pub mod pod;
pub mod repair;
pub mod rules;
pub mod run;
pub mod server;
pub mod state;
pub mod trial;
pub mod watch;
