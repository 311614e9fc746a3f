//! How one service asks another: by the service's name, on port 9080, and with the headers by which a mesh
//! knows that calls belong together.

use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::http::{HeaderMap, StatusCode};
use reqwest::{Client, redirect};
use serde_json::Value;

/// Passed on from the request that is being answered to the requests that are made for it.
const HANDED_ON: [&str; 9] = [
    "x-request-id",
    "end-user",
    "traceparent",
    "tracestate",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];
/// How long a service waits for another.
const PATIENCE: Duration = Duration::from_secs(3);

/// Another service.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    base: String,
    client: Client,
}

/// Why there is nothing to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable {
    /// The status to answer with: the other service's, or 503 where it did not answer.
    pub(crate) status: StatusCode,
    /// What happened, for the log.
    pub(crate) why: String,
}

impl Peer {
    /// The service `name`; `NAME_HOSTNAME` and `NAME_SERVICE_PORT` in the environment override where it is.
    pub(crate) fn new(name: &str) -> Result<Peer> {
        let variable = |suffix: &str| std::env::var(format!("{}_{suffix}", name.to_uppercase())).ok();
        let host = variable("HOSTNAME").unwrap_or_else(|| name.to_owned());
        let port = variable("SERVICE_PORT").unwrap_or_else(|| "9080".to_owned());
        // One connection per request, so that what the kernel counts can be compared with what was asked.
        let client = Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0);
        let client = client.redirect(redirect::Policy::none()).build().context("making an HTTP client")?;
        Ok(Peer { base: format!("http://{host}:{port}"), client })
    }

    /// Asks for `path` on behalf of the request that has `headers`.
    pub(crate) async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Value, Unavailable> {
        let url = format!("{}{path}", self.base);
        let outcome = self.ask(&url, headers).await;
        if let Err(unavailable) = &outcome {
            eprintln!("bookinfo-services: GET {url}: {}", unavailable.why);
        }
        outcome
    }

    async fn ask(&self, url: &str, headers: &HeaderMap) -> Result<Value, Unavailable> {
        let lost = |error: reqwest::Error| Unavailable {
            status: StatusCode::SERVICE_UNAVAILABLE,
            why: format!("{:#}", anyhow::Error::from(error)),
        };
        let answer = self.client.get(url).headers(handed_on(headers)).send().await.map_err(lost)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Unavailable { status, why: format!("answered with {status}") });
        }
        answer.json().await.map_err(lost)
    }
}

fn handed_on(headers: &HeaderMap) -> HeaderMap {
    let found = HANDED_ON.iter().filter_map(|name| Some((*name, headers.get(*name)?)));
    found.map(|(name, value)| (axum::http::HeaderName::from_static(name), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_a_trace_is_handed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-request-id", "7"), ("cookie", "secret"), ("host", "productpage")] {
            headers.insert(name, value.parse().unwrap());
        }
        let on = handed_on(&headers);
        assert_eq!((on.len(), on["x-request-id"].to_str().unwrap()), (1, "7"));
    }
}
