//! The plugin as a runtime meets it: the real binary as a process, its environment, stdin, stdout and exit
//! status.
//!
//! Modules in reading order: [`call`] runs it; [`golden`] has one recorded pair per verb and version;
//! [`malformed`] is input that must be refused, [`forged`] what tries to look like our own words, and
//! [`fuzz`] makes more of both; [`enrolment`] is who is captured, and [`agent`] where the plugin asks about
//! it. Those need neither root nor a kernel. [`attach`], [`order`], [`crowd`], [`crash`], [`cgroups`],
//! [`collect`], [`owners`], [`privileges`], [`ready`], [`repair`], [`stuck`], [`unseen`], [`versions`] and
//! [`campaign`], which does what can go wrong, enrol real pods: run as root with `--test-threads=1`.

mod agent;
mod attach;
mod call;
mod calls;
mod campaign;
mod cgroups;
mod collect;
mod crash;
mod crowd;
mod enrolment;
mod forged;
mod fuzz;
mod golden;
mod later;
mod limits;
mod malformed;
mod node_rules;
mod order;
mod owners;
mod privileges;
mod ready;
mod refusals;
mod repair;
mod sandbox;
mod stuck;
mod unseen;
mod versions;
