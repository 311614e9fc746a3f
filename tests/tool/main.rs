//! The operator's tool, as an operator runs it.
//!
//! Modules in reading order: [`verify`] lets the node try itself, and breaks it; [`doctor`]
//! provokes every check.
//!
//! Run as root with `--test-threads=1`; `KEEP=1` keeps the pods of a failed test.

mod bpftrace;
mod doctor;
mod explain;
mod generate;
mod help;
mod pages;
mod privileges;
mod report;
mod trace;
mod verify;
