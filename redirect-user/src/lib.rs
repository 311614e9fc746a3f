//! The library behind the plugin and the operator's tool.
//!
//! Table of contents, in reading order: [`policy`] says what is captured in a pod; [`hook`] lists the programs; [`attach`]
//! is the heart of ADD and DEL, with `links`, [`netns`], [`userns`], [`tables`], [`pins`] and [`attachment`] as its hands;
//! [`install`] puts programs and maps on the node from [`object`]; [`inspect`] reports, [`explain`]
//! answers as the kernel would, [`gc`] collects, [`upgrade`] replaces programs in place, [`doctor`] examines the node; [`sys`] is bpf(2) itself.
//!
//! Before attach stands the question whether a pod is ours: [`enrol`] asks it, [`podsource`] knows the pod, [`grammar`],
//! [`annotations`] and [`owner_groups`] read what it wants, [`cgroup`] finds where it lives, and [`tally`] counts.

pub mod annotations;
pub mod attach;
pub mod attachment;
pub mod cgroup;
pub mod doctor;
pub mod enrol;
pub mod explain;
pub mod fault;
pub mod gc;
pub mod grammar;
pub mod hook;
pub mod inspect;
pub mod install;
mod links;
pub mod lock;
pub mod netns;
pub mod node;
mod object;
pub mod owner_groups;
pub mod pins;
pub mod podsource;
pub mod policy;
pub mod sys;
pub mod tables;
pub mod tally;
pub mod upgrade;
pub mod userns;
