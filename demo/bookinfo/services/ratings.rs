//! The service `ratings`: stars by reviewer, kept in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::serve::health;

/// Stars by reviewer.
type Stars = BTreeMap<String, u8>;
/// What was posted, by product.
type Posted = Arc<Mutex<BTreeMap<u64, Stars>>>;

/// `/ratings/ID` to read and to post, and `/health`.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/health", get(|| async { health("Ratings") }))
        .route("/ratings/{id}", get(read).post(post))
        .with_state(Posted::default())
}

async fn read(State(posted): State<Posted>, Path(id): Path<String>) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse() else { return bad("please provide numeric product ID") };
    let stars = posted.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    (StatusCode::OK, Json(answer(id, &stars.unwrap_or_else(unposted))))
}

async fn post(
    State(posted): State<Posted>,
    Path(id): Path<String>,
    body: Result<Json<Stars>, axum::extract::rejection::JsonRejection>,
) -> (StatusCode, Json<Value>) {
    let Ok(id) = id.parse() else { return bad("please provide numeric product ID") };
    let Ok(Json(stars)) = body else { return bad("please provide valid ratings JSON") };
    posted.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stars.clone());
    (StatusCode::OK, Json(answer(id, &stars)))
}

fn bad(message: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": message })))
}

fn answer(id: u64, stars: &Stars) -> Value {
    json!({ "id": id, "ratings": stars })
}

fn unposted() -> Stars {
    [("Reviewer1", 5), ("Reviewer2", 4)].map(|(name, stars)| (name.to_owned(), stars)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_is_posted_is_read_again_and_other_products_keep_theirs() {
        let posted = Posted::default();
        let stars = Stars::from([("Reviewer1".to_owned(), 1)]);
        let (status, answer) = block_on(post(State(posted.clone()), Path("3".into()), Ok(Json(stars))));
        assert_eq!((status, &answer.0), (StatusCode::OK, &json!({ "id": 3, "ratings": { "Reviewer1": 1 } })));
        assert_eq!(block_on(read(State(posted.clone()), Path("3".into()))).1.0, answer.0);
        let other = block_on(read(State(posted), Path("4".into()))).1.0;
        assert_eq!(other, json!({ "id": 4, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } }));
    }

    #[test]
    fn a_product_has_a_number() {
        assert_eq!(block_on(read(State(Posted::default()), Path("x".into()))).0, StatusCode::BAD_REQUEST);
    }
}
