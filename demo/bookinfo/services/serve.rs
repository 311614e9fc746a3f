//! Serves a router until somebody ends the process.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves at `listen`. In a container this is process 1, to which the kernel passes only signals that it
/// waits for.
pub(crate) async fn serve(listen: SocketAddr, router: Router) -> Result<()> {
    let mut end = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening at {listen}"))?;
    eprintln!("bookinfo-services: serving at {listen}");
    tokio::select! {
        served = axum::serve(listener, router) => served.context("serving"),
        _ = end.recv() => Ok(()),
    }
}

/// The answer to `/health`.
pub(crate) fn health(service: &str) -> Json<Value> {
    Json(json!({ "status": format!("{service} is healthy") }))
}
