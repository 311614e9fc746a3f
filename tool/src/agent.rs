//! `redirect agent`: answers the plugin's questions about pods at a Unix socket, from manifests.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use redirect_agent::manifests::Manifests;
use redirect_agent::server::Server;
use tokio::signal::unix::{SignalKind, signal};

/// `redirect agent`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pods of this node: a JSON manifest, or a folder of them that is read again for every question.
    #[arg(long, value_name = "PATH")]
    pods: PathBuf,
    /// Where the plugin asks (its `agentSocket`).
    #[arg(long, value_name = "PATH", default_value = "/run/redirect-cni/agent.sock")]
    socket: PathBuf,
}

/// Serves until SIGINT or SIGTERM, and takes the socket away at the end.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &Args) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let server = Server::bind(&args.socket)?;
    tracing::info!(socket = %args.socket.display(), pods = %args.pods.display(), "answering");
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    server.serve(Manifests::new(&args.pods), stop).await;
    Ok(())
}
