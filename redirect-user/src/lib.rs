//! The library behind the plugin and the operator's tool.
//!
//! Table of contents, in reading order: [`policy`] says what is captured in a pod; [`hook`] lists the programs; [`attach`]
//! is the heart of ADD and DEL, with [`netns`], [`userns`], [`tables`], [`pins`] and [`attachment`] as its hands;
//! [`install`] puts programs and maps on the node from [`object`]; [`inspect`] reports; [`sys`] is bpf(2) itself.

pub mod attach;
pub mod attachment;
pub mod fault;
pub mod hook;
pub mod inspect;
pub mod install;
pub mod lock;
pub mod netns;
pub mod node;
mod object;
pub mod pins;
pub mod policy;
pub mod sys;
pub mod tables;
pub mod userns;
