//! The kernel's side of the node: [`sys`] is bpf(2) itself, [`hook`] lists the programs, [`object`] carries them, [`pins`]
//! has every path below bpffs, [`install`] puts programs and maps there.

pub mod hook;
pub mod install;
pub(crate) mod object;
pub mod pins;
pub mod sys;
