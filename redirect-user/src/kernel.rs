//! The kernel's side of the node: [`sys`] is bpf(2) itself, [`hook`] and [`filter`] list the programs,
//! [`object`] carries them, [`features`] says what they know, [`pins`] has every path below bpffs,
//! [`folders`] reads and removes them, [`install`] puts programs and maps there, [`stamp`] says which,
//! [`refusal`] says in one line why the kernel did not take one, [`capabilities`] whether we may try.

pub mod capabilities;
pub mod features;
pub mod filter;
pub(crate) mod folders;
pub mod hook;
pub mod install;
pub(crate) mod object;
pub mod pins;
pub(crate) mod refusal;
pub mod stamp;
pub mod sys;
