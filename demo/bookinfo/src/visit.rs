//! Opens the product page as a user does, from outside the node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use reqwest::blocking::Client;

use crate::trips::Visit;

/// How long a page may take: more than all time-outs on its way together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the page at `url`.
pub(crate) fn visit(url: &str) -> Result<Visit> {
    // A new client each time: a browser that opens the page again makes a new connection, too.
    let client = Client::builder().timeout(PATIENCE).build().context("making an HTTP client")?;
    let start = Instant::now();
    let answer = client.get(url).send().with_context(|| format!("GET {url}"))?;
    let id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let request_id = id.with_context(|| format!("GET {url}: the answer has no x-request-id"))?.to_owned();
    let status = answer.status().as_u16();
    let body = answer.text().with_context(|| format!("GET {url}: reading the page"))?;
    Ok(Visit { request_id, status, millis: start.elapsed().as_millis(), body })
}

/// What the page says.
impl Visit {
    /// The pod that served the reviews, as the page names it.
    pub(crate) fn served_by(&self) -> Option<&str> {
        let (_, rest) = self.body.split_once("<code id=\"served-by\">")?;
        Some(rest.split_once("</code>")?.0)
    }

    /// Whether the details of the book are on the page.
    pub(crate) fn has_details(&self) -> bool {
        self.body.contains("<dd>William Shakespeare</dd>")
    }

    /// Whether there are stars on the page.
    pub(crate) fn has_stars(&self) -> bool {
        self.body.contains('★')
    }

    /// Whether the page says that there are no ratings now.
    pub(crate) fn misses_ratings(&self) -> bool {
        self.body.contains("Ratings service is currently unavailable")
    }

    /// Whether the page is what it has to be when everything works.
    pub(crate) fn is_whole(&self) -> bool {
        let stars = match self.served_by() {
            Some("reviews-v1") => !self.has_stars(),
            Some("reviews-v2" | "reviews-v3") => self.has_stars(),
            _ => false,
        };
        self.status == 200 && self.has_details() && stars && !self.misses_ratings()
    }

    /// In words, for a report.
    pub(crate) fn summary(&self) -> String {
        let details = if self.has_details() { "details" } else { "no details" };
        let reviews = self.served_by().map_or("no reviews".into(), |pod| format!("reviews by {pod}"));
        let ratings = match (self.misses_ratings(), self.has_stars()) {
            (true, _) => "ratings missed",
            (false, true) => "stars",
            (false, false) => "no stars",
        };
        format!("{}, {details}, {reviews}, {ratings}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &str) -> Visit {
        Visit { request_id: "1".into(), status: 200, millis: 1, body: body.into() }
    }

    #[test]
    fn a_page_is_whole_with_the_stars_that_its_version_shows() {
        let details = "<dd>William Shakespeare</dd>";
        let by = |pod: &str| format!("<code id=\"served-by\">{pod}</code>");
        assert!(page(&format!("{details}{}", by("reviews-v1"))).is_whole());
        assert!(page(&format!("{details}★{}", by("reviews-v2"))).is_whole());
        assert!(!page(&format!("{details}{}", by("reviews-v2"))).is_whole());
        assert!(!page(&format!("{details}★{}", by("reviews-v1"))).is_whole());
        assert!(!page(&by("reviews-v1")).is_whole());
        assert!(!page(details).is_whole());
        let sorry = format!("{details}Ratings service is currently unavailable{}", by("reviews-v1"));
        assert!(!page(&sorry).is_whole());
        assert_eq!(page(&sorry).summary(), "200, details, reviews by reviews-v1, ratings missed");
    }
}
