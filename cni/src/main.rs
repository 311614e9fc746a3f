//! The CNI plugin `redirect-cni`.
//!
//! The walk of a call: [`call`] reads the environment, [`conf`] the configuration on stdin; [`add`], [`del`],
//! [`check`], [`gc`] or [`status`] does the work in `redirect_user`; [`reply`] writes the one answer, with a
//! number from [`error`] where it is no result.

#![forbid(unsafe_code)]

mod add;
mod call;
mod check;
mod conf;
mod del;
mod enrol;
mod error;
mod gc;
mod log;
mod prev;
mod reply;
mod run;
mod status;
mod version;

use std::process::ExitCode;

fn main() -> ExitCode {
    reply::catch_panics();
    redirect_user::node::keep_others_from_writing();
    reply::send(run::run())
}
