//! The CNI plugin `redirect-cni`.
//!
//! The walk of a call: [`request`] reads the environment, [`conf`] the configuration on stdin; [`add`],
//! [`del`], [`check`], [`gc`] or [`status`] does the work in `redirect_user`; [`reply`] writes the one
//! answer, with a number from [`error`] where it is no result.

#![forbid(unsafe_code)]

mod add;
mod check;
mod conf;
mod decide;
mod del;
mod error;
mod gc;
mod log;
mod prev;
mod reply;
mod request;
mod run;
mod status;

use std::process::ExitCode;

fn main() -> ExitCode {
    reply::catch_panics();
    reply::send(run::run())
}
