//! `/metrics`, `/healthz` and `/readyz`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;

use crate::state::State;

/// Why the pages cannot be served.
#[derive(Debug, Error)]
#[error("cannot listen at {address} for /metrics and /readyz: {source}; choose another --listen")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// Listens. Where the kernel has no IPv6, `[::]` is 0.0.0.0.
///
/// # Errors
/// The address cannot be used.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    let only_v4 = |error: &std::io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    let bound = match bound {
        Err(error) if only_v4(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| Error { address, source })
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    let (for_metrics, for_ready) = (Arc::clone(&state), state);
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || metrics(for_metrics)))
        .route("/readyz", get(move || ready(for_ready)));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

async fn metrics(state: Arc<State>) -> impl IntoResponse {
    let page = tokio::task::spawn_blocking(move || {
        state.collect();
        state.metrics.page()
    });
    let page = page.await.unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page)
}

async fn ready(state: Arc<State>) -> impl IntoResponse {
    let missing = state.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
}
