//! One request from the command line, for containers that have no `curl`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use reqwest::{Client, redirect};

/// What to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where
    url: String,
    /// The host to ask for, where it is not the one in the URL
    #[arg(long)]
    host: Option<String>,
    /// Seconds until it gives up
    #[arg(long, default_value_t = 5)]
    timeout: u64,
}

/// Prints the status on the first line and then the body.
pub(crate) async fn run(options: &Options) -> Result<ExitCode> {
    let client = Client::builder().timeout(Duration::from_secs(options.timeout));
    let client = client.redirect(redirect::Policy::none()).build().context("making an HTTP client")?;
    let mut request = client.get(&options.url);
    if let Some(host) = &options.host {
        request = request.header("host", host);
    }
    let answer = request.send().await?;
    println!("{}", answer.status().as_u16());
    print!("{}", answer.text().await.context("reading the body")?);
    Ok(ExitCode::SUCCESS)
}
