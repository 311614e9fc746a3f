//! Documents kept true: each table that repeats what the code says is compared with the code.
//!
//! A failure names the document that has to change. Links and file names are checked by `cargo xtask tidy`.

mod claims;
mod commands;
mod crates;
mod doctor;
mod faults;
mod maps;
mod pictures;
mod plugin;
mod rules;
mod table;
mod tiers;
