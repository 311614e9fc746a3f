//! Parts of a drawing: boxes, and arrows with what they count.

use maud::{Markup, html};
use redirect_user::printable::printable;

/// The tips of arrows, one for each colour: a marker does not take over the colour of its line everywhere.
pub(crate) fn tips() -> Markup {
    html! {
        defs {
            @for (name, colour) in [("good", "--good"), ("plain", "--plain"), ("bad", "--bad"), ("audit", "--audit"), ("then", "--line")] {
                marker id=(format!("tip-{name}")) viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
                    orient="auto" {
                    path d="M0 0 L10 5 L0 10 z" style=(format!("fill: var({colour})")) {}
                }
            }
        }
    }
}

/// A box with a name and a line below it.
pub(crate) fn boxed(at: (i32, i32), size: (i32, i32), name: &str, below: &str) -> Markup {
    let middle = at.0 + size.0 / 2;
    let height = at.1 + size.1 / 2;
    html! {
        rect.box x=(at.0) y=(at.1) width=(size.0) height=(size.1) rx="8" {}
        text x=(middle) y=(height - 3) text-anchor="middle" font-weight="600" { (name) }
        text.soft x=(middle) y=(height + 16) text-anchor="middle" { (below) }
    }
}

/// An arrow along a path, with a count beside it. It can be reached with the keyboard, and then says what it
/// is.
pub(crate) struct Arrow<'a> {
    /// `good`, `plain`, `bad` or `audit`.
    pub(crate) kind: &'static str,
    /// A path of SVG.
    pub(crate) path: &'a str,
    /// Where the count stands.
    pub(crate) label: (i32, i32),
    /// What is counted.
    pub(crate) what: &'a str,
    /// How often.
    pub(crate) count: u64,
}

impl Arrow<'_> {
    pub(crate) fn draw(&self) -> Markup {
        let never = if self.count == 0 { " never" } else { "" };
        let class = format!("{}{never}", self.kind);
        let (x, y) = self.label;
        html! {
            g class=(class) tabindex="0" role="img" aria-label=(format!("{}: {}", self.what, self.count)) {
                title { (self.what) ": " (self.count) }
                path.arrow d=(self.path) marker-end=(format!("url(#tip-{})", self.kind)) {}
                text.count x=(x) y=(y) text-anchor="middle" { (self.count) }
                text.soft x=(x) y=(y + 15) text-anchor="middle" { (self.what) }
            }
        }
    }
}

/// A name that fits where there is room for so many letters: the end of a long one says most.
pub(crate) fn shortened(name: &str, most: usize) -> String {
    // As the page writes it out: one letter may become many.
    let name = printable(name);
    let count = name.chars().count();
    if count <= most {
        return name;
    }
    let tail: String = name.chars().skip(count + 2 - most).collect();
    format!("\u{2026}{tail}")
}
