//! The applications of the Bookinfo demonstration: one binary, one mode per service, each on port 9080 with
//! the paths and JSON shapes of the well-known example. None of them knows that there is a mesh.
//!
//! Reading order: [`productpage`] asks [`details`] and [`reviews`]; reviews asks [`ratings`] in two of its
//! three versions; [`call`] is how they ask each other; [`get`] is what a person would use `curl` for.

#![forbid(unsafe_code)]

mod call;
mod details;
mod get;
mod page;
mod productpage;
mod ratings;
mod reviews;
mod serve;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// The services of Bookinfo
#[derive(Debug, Parser)]
#[command(name = "bookinfo-services")]
struct Options {
    /// Where to serve
    #[arg(long, global = true, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9080)))]
    listen: SocketAddr,
    #[command(subcommand)]
    mode: Mode,
}

/// What to be.
#[derive(Debug, Subcommand)]
enum Mode {
    /// The page with everything about one book
    Productpage,
    /// What is known about the book
    Details,
    /// What readers say about the book, without stars (v1), with black (v2) or with red ones (v3)
    Reviews { version: reviews::Version },
    /// How many stars readers give
    Ratings,
    /// Make one request, print status and body, and end; exit status 1 says that there was no answer
    Get(get::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("starting a runtime").and_then(|runtime| runtime.block_on(run(options)));
    outcome.unwrap_or_else(|error| {
        eprintln!("bookinfo-services: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(options: Options) -> Result<ExitCode> {
    let router = match options.mode {
        Mode::Productpage => productpage::router()?,
        Mode::Details => details::router(),
        Mode::Reviews { version } => reviews::router(version)?,
        Mode::Ratings => ratings::router(),
        Mode::Get(request) => return get::run(&request).await,
    };
    serve::serve(options.listen, router).await?;
    Ok(ExitCode::SUCCESS)
}
