//! The service `reviews`, in three versions: v1 does not ask for ratings, v2 shows black stars, v3 red ones.

use anyhow::Result;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::call::{Peer, Unavailable};
use crate::serve::health;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    /// No stars
    V1,
    /// Black stars
    V2,
    /// Red stars
    V3,
}

impl Version {
    fn color(self) -> Option<&'static str> {
        match self {
            Version::V1 => None,
            Version::V2 => Some("black"),
            Version::V3 => Some("red"),
        }
    }
}

/// Who said what. The words are ours.
const REVIEWS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "Two pairs of twins, one town, and not a single name that helps: I laughed until the last scene.",
    ),
    (
        "Reviewer2",
        "Short, fast and silly. Not the deepest play of its author, but the one I would see again.",
    ),
];

/// The service's state.
#[derive(Clone, Debug)]
struct Reviews {
    color: Option<&'static str>,
    ratings: Peer,
    pod: String,
    cluster: String,
}

/// `/reviews/ID` and `/health`.
pub(crate) fn router(version: Version) -> Result<Router> {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "null".to_owned());
    let reviews = Reviews {
        color: version.color(),
        ratings: Peer::new("ratings")?,
        pod: variable("HOSTNAME"),
        cluster: variable("CLUSTER_NAME"),
    };
    let router = Router::new()
        .route("/health", get(|| async { health("Reviews") }))
        .route("/reviews/{id}", get(reviews_of));
    Ok(router.with_state(reviews))
}

async fn reviews_of(
    State(service): State<Reviews>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let Ok(number) = id.parse::<u64>() else {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "please provide numeric product ID" })));
    };
    let ratings = match service.color {
        None => None,
        Some(color) => Some((color, service.ratings.get(&format!("/ratings/{number}"), &headers).await)),
    };
    let reviews: Vec<_> = REVIEWS.iter().map(|(who, text)| review(who, text, ratings.as_ref())).collect();
    let answer =
        json!({ "id": id, "podname": service.pod, "clustername": service.cluster, "reviews": reviews });
    (StatusCode::OK, Json(answer))
}

/// One review, with the stars that its writer gave where this version shows any.
fn review(who: &str, text: &str, ratings: Option<&(&str, Result<Value, Unavailable>)>) -> Value {
    let mut review = json!({ "reviewer": who, "text": text });
    if let Some((color, answer)) = ratings {
        let stars = answer.as_ref().ok().map(|answer| &answer["ratings"][who]).filter(|stars| stars.is_u64());
        review["rating"] = match stars {
            Some(stars) => json!({ "stars": stars, "color": color }),
            None => json!({ "error": "Ratings service is currently unavailable" }),
        };
    }
    review
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_differ_in_their_stars() {
        assert_eq!(review("Reviewer1", "good", None), json!({ "reviewer": "Reviewer1", "text": "good" }));
        let answer = Ok(json!({ "id": 0, "ratings": { "Reviewer1": 5 } }));
        let red = review("Reviewer1", "good", Some(&("red", answer)));
        assert_eq!(red["rating"], json!({ "stars": 5, "color": "red" }));
    }

    #[test]
    fn a_review_does_without_stars_that_are_not_to_be_had() {
        let lost = Unavailable { status: StatusCode::SERVICE_UNAVAILABLE, why: "refused".into() };
        for answer in [Err(lost), Ok(json!({ "ratings": {} })), Ok(json!([]))] {
            let review = review("Reviewer1", "good", Some(&("red", answer)));
            assert_eq!(review["rating"], json!({ "error": "Ratings service is currently unavailable" }));
            assert_eq!(review["text"], "good");
        }
    }
}
