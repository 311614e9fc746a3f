//! The HTML of the product page. Everything is in one document: a browser that opens it makes one request.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::call::Unavailable;

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: #222; background: #f6f4ef }
header { background: #23395b; color: #fff; padding: 1.5rem 2rem }
header a { color: inherit }
header h1 { margin: 0; font-family: Georgia, serif }
main { display: flex; flex-wrap: wrap; gap: 2rem; padding: 2rem; max-width: 60rem }
section { flex: 1 1 20rem; background: #fff; border-radius: .5rem; padding: 1rem 1.5rem }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 0 }
blockquote { margin: 0 0 1rem 0; padding-left: 1rem; border-left: 3px solid #ccc }
.red { color: #c1121f } .stars { letter-spacing: .15em }
.sorry { color: #8a1c1c; font-weight: 600 }
footer { padding: 0 2rem 2rem; color: #666; font-size: .9rem }
";

/// What the page says about its facts, in their order on it.
const DETAILS: [(&str, &str); 8] = [
    ("author", "Author"),
    ("year", "Year"),
    ("type", "Type"),
    ("pages", "Pages"),
    ("publisher", "Publisher"),
    ("language", "Language"),
    ("ISBN-10", "ISBN-10"),
    ("ISBN-13", "ISBN-13"),
];

/// The page about one book.
pub(crate) struct Page<'a> {
    /// Its title.
    pub(crate) title: &'a str,
    /// What it is about, as HTML.
    pub(crate) description: &'a str,
    /// The answer of `details`.
    pub(crate) details: Result<Value, Unavailable>,
    /// The answer of `reviews`.
    pub(crate) reviews: Result<Value, Unavailable>,
}

impl Page<'_> {
    /// The whole document.
    pub(crate) fn to_html(&self) -> Markup {
        document(
            self.title,
            html! {
                header { h1 { (self.title) } p { (PreEscaped(self.description)) } }
                main {
                    section #details { h2 { "Book details" } (details(&self.details)) }
                    section #reviews { h2 { "Book reviews" } (reviews(&self.reviews)) }
                }
            },
        )
    }
}

/// The document at `/`.
pub(crate) fn index() -> Markup {
    document(
        "Bookinfo",
        html! {
            header { h1 { "Bookinfo" } }
            main { section { p { "One book, four services: " a href="productpage" { "the product page" } "." } } }
        },
    )
}

fn document(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (title) }
                // Keeps browsers from asking for /favicon.ico.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
}

fn details(answer: &Result<Value, Unavailable>) -> Markup {
    let Ok(details) = answer else { return sorry("product details", answer) };
    html! {
        dl { @for (key, label) in DETAILS { dt { (label) } dd { (text(&details[key])) } } }
    }
}

fn reviews(answer: &Result<Value, Unavailable>) -> Markup {
    let Ok(reviews) = answer else { return sorry("product reviews", answer) };
    let list = reviews["reviews"].as_array().map_or(&[][..], Vec::as_slice);
    html! {
        @for review in list {
            blockquote {
                p { (text(&review["text"])) }
                p { "— " (text(&review["reviewer"])) }
                (rating(&review["rating"]))
            }
        }
        p { "Reviews served by: " code #served-by { (text(&reviews["podname"])) } }
    }
}

fn rating(rating: &Value) -> Markup {
    if let Some(error) = rating["error"].as_str() {
        return html! { p .sorry { (error) } };
    }
    let Some(stars) = rating["stars"].as_u64() else { return html! {} };
    let (given, of) = (stars.min(5), 5);
    let shown: String = (0..of).map(|star| if star < given { '★' } else { '☆' }).collect();
    let class = if rating["color"] == "red" { "stars red" } else { "stars" };
    html! { p class=(class) title={ (given) " of " (of) " stars" } { (shown) } }
}

fn sorry(what: &str, answer: &Result<Value, Unavailable>) -> Markup {
    let status = answer.as_ref().err().map_or(0, |unavailable| unavailable.status.as_u16());
    html! {
        p .sorry { "Sorry, " (what) " are currently unavailable for this book. (" (status) ")" }
    }
}

/// A JSON value as a reader wants it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    fn page(details: Result<Value, Unavailable>, reviews: Result<Value, Unavailable>) -> String {
        Page { title: "A & B", description: "<b>bold</b>", details, reviews }.to_html().into_string()
    }

    fn lost() -> Result<Value, Unavailable> {
        Err(Unavailable { status: StatusCode::SERVICE_UNAVAILABLE, why: "no".into() })
    }

    #[test]
    fn what_other_services_say_is_text_and_not_markup() {
        let review = json!({ "reviewer": "R", "text": "x", "rating": { "stars": 4, "color": "red" } });
        let page = page(lost(), Ok(json!({ "podname": "reviews-v3", "reviews": [review] })));
        assert!(page.contains("<h1>A &amp; B</h1>") && page.contains("<b>bold</b>"), "{page}");
        assert!(page.contains("★★★★☆") && page.contains("class=\"stars red\""), "{page}");
    }

    #[test]
    fn no_word_of_another_service_is_markup() {
        let trick = "\"'></title><script>alert(1)</script> &lt;b&gt;";
        let review = json!({ "reviewer": trick, "text": trick, "rating": { "error": trick } });
        let rated = json!({ "reviewer": [trick], "text": { trick: trick }, "rating": { "stars": 9, "color": trick } });
        let details: serde_json::Map<_, _> =
            DETAILS.iter().map(|(key, _)| ((*key).to_owned(), json!(trick))).collect();
        let page = page(Ok(details.into()), Ok(json!({ "podname": trick, "reviews": [review, rated] })));
        assert!(!page.contains("<script") && !page.contains("\"'>") && !page.contains(" &lt;b"), "{page}");
        let shown =
            page.matches("&quot;'&gt;&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp;lt;b&amp;gt;");
        assert_eq!(shown.count(), DETAILS.len() + 7, "{page}");
    }

    #[test]
    fn each_half_of_the_page_apologises_for_itself() {
        let book = json!({ "author": "Somebody", "year": 1595 });
        let page = page(Ok(book), lost());
        assert!(page.contains("<dd>Somebody</dd>") && page.contains("<dd>1595</dd>"), "{page}");
        assert!(
            page.contains("Sorry, product reviews are currently unavailable for this book. (503)"),
            "{page}"
        );
        assert!(!page.contains("product details are"), "{page}");
    }

    #[test]
    fn missing_ratings_do_not_take_the_reviews_along() {
        let review = json!({ "reviewer": "R", "text": "good", "rating": { "error": "no stars" } });
        let page = page(lost(), Ok(json!({ "podname": "reviews-v2", "reviews": [review] })));
        assert!(page.contains("good") && page.contains("no stars") && !page.contains('★'), "{page}");
    }
}
