//! The service `productpage`: asks for details and reviews at the same time and shows what it got; the same
//! as JSON below `/api/v1`.

use anyhow::Result;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::call::{Peer, Unavailable};
use crate::page::{self, Page};

/// The one product.
pub(crate) const TITLE: &str = "The Comedy of Errors";
/// What it is about, as HTML. The words are ours.
const DESCRIPTION: &str = "Two pairs of identical twins, parted by a shipwreck, come to the same town on the same day. \
    <a href=\"https://en.wikipedia.org/wiki/The_Comedy_of_Errors\">Wikipedia</a> tells the rest.";

/// The services that the page is made of.
#[derive(Clone, Debug)]
struct Peers {
    details: Peer,
    reviews: Peer,
    ratings: Peer,
}

/// `/productpage`, `/`, `/health` and `/api/v1/products...`.
pub(crate) fn router() -> Result<Router> {
    let peers = Peers {
        details: Peer::new("details")?,
        reviews: Peer::new("reviews")?,
        ratings: Peer::new("ratings")?,
    };
    let router = Router::new()
        .route("/", get(|| async { Html(page::index().into_string()) }))
        .route("/health", get(|| async { "Product page is healthy" }))
        .route("/productpage", get(product_page))
        .route("/api/v1/products", get(|| async { Json(products()) }))
        .route("/api/v1/products/{id}", get(details))
        .route("/api/v1/products/{id}/reviews", get(reviews))
        .route("/api/v1/products/{id}/ratings", get(ratings));
    Ok(router.with_state(peers))
}

fn products() -> Value {
    json!([{ "id": 0, "title": TITLE, "descriptionHtml": DESCRIPTION }])
}

async fn product_page(State(peers): State<Peers>, headers: HeaderMap) -> Html<String> {
    let (details, reviews) =
        tokio::join!(peers.details.get("/details/0", &headers), peers.reviews.get("/reviews/0", &headers));
    Html(Page { title: TITLE, description: DESCRIPTION, details, reviews }.to_html().into_string())
}

async fn details(State(peers): State<Peers>, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    answer(peers.details.get(&format!("/details/{id}"), &headers).await, "product details")
}

async fn reviews(State(peers): State<Peers>, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    answer(peers.reviews.get(&format!("/reviews/{id}"), &headers).await, "product reviews")
}

async fn ratings(State(peers): State<Peers>, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    answer(peers.ratings.get(&format!("/ratings/{id}"), &headers).await, "product ratings")
}

/// What another service said, or that it said nothing.
fn answer(outcome: Result<Value, Unavailable>, what: &str) -> Response {
    let apology = |status: StatusCode| {
        (status, Json(json!({ "error": format!("Sorry, {what} are currently unavailable for this book.") })))
    };
    match outcome {
        Ok(value) => Json(value).into_response(),
        Err(unavailable) => apology(unavailable.status).into_response(),
    }
}
