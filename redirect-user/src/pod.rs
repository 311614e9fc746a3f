//! A pod as this machine sees it: its network namespace, its user namespace, its cgroup.

pub mod cgroup;
pub mod clsact;
pub mod netns;
pub mod routes;
pub mod userns;
