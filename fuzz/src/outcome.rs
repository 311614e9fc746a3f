//! What a function may make of its input, and what holds for every error.

/// What a function made of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was understood.
    Read,
    /// It was refused, with an error that says why.
    Refused,
    /// It is no input of this function: not UTF-8, for one.
    Strange,
}

/// An error's text is for a line of a log or an event: it says something, stays in its line, and is no longer
/// than what it tells about some cut values.
#[track_caller]
pub(crate) fn assert_is_one_line(text: &str, most: usize) {
    assert!(!text.trim().is_empty(), "an error says nothing");
    assert!(!text.contains(char::is_control), "a control character: {text:?}");
    assert!(text.len() <= most, "{} bytes of text: {text:?}", text.len());
}
