//! A browser without a window, as a user's program that knows nothing of this project.

use harness::browser::browse;

/// A page as a browser has it after it has loaded it.
#[derive(Debug)]
pub(crate) struct Page {
    html: String,
}

/// Opens `url` in a browser that has never been started before.
pub(crate) fn open(url: &str) -> Page {
    Page { html: String::from_utf8(browse(30, &["--dump-dom", url])).expect("a page is UTF-8") }
}

impl Page {
    /// The pod that the reviews came from, as the page names it.
    pub(crate) fn served_by(&self) -> &str {
        let found =
            self.html.split_once("<code id=\"served-by\">").and_then(|(_, rest)| rest.split_once("</code>"));
        found.unwrap_or_else(|| panic!("there are no reviews on the page:\n{}", self.html)).0
    }

    /// Fails unless everything is on the page that its version of the reviews promises.
    pub(crate) fn assert_whole(&self) {
        let html = &self.html;
        for part in
            ["<h1>The Comedy of Errors</h1>", "<dt>Author</dt><dd>William Shakespeare</dd>", "1234567890"]
        {
            assert!(html.contains(part), "`{part}` is not on the page:\n{html}");
        }
        assert_eq!(html.matches("<blockquote>").count(), 2, "two reviews:\n{html}");
        let (stars, red) = (html.matches('★').count(), html.contains("class=\"stars red\""));
        let expected = match self.served_by() {
            "reviews-v1" => (0, false),
            "reviews-v2" => (9, false),
            "reviews-v3" => (9, true),
            other => panic!("reviews by {other}:\n{html}"),
        };
        assert_eq!((stars, red), expected, "{html}");
        assert!(!html.contains("unavailable"), "{html}");
    }
}
