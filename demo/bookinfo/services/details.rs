//! The service `details`: what is printed in the front of a book.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::serve::health;

/// `/details/ID` and `/health`.
pub(crate) fn router() -> Router {
    Router::new().route("/health", get(|| async { health("Details") })).route("/details/{id}", get(details))
}

async fn details(Path(id): Path<String>) -> (StatusCode, Json<Value>) {
    match id.parse() {
        Ok(id) => (StatusCode::OK, Json(of(id))),
        Err(_) => (StatusCode::BAD_REQUEST, Json(json!({ "error": "please provide numeric product id" }))),
    }
}

/// All books are the same book, as in the example.
fn of(id: u64) -> Value {
    json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    })
}
