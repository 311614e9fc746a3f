//! A pod as this machine sees it: its network namespace, its user namespace, its cgroup, and rules of others
//! in it.

pub mod cgroup;
pub mod clsact;
pub(crate) mod inhabited;
pub mod netns;
pub mod packet_rules;
pub mod routes;
pub mod userns;
