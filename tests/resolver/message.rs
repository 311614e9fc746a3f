//! What the first label of a question's name makes the proxy do.

pub(crate) use harness::dns::message::{answer, id, question};

/// What the proxy does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Answer at once.
    Answer,
    /// Answer after the next question has been answered.
    Hold,
    /// Never answer: the answer is lost on its way.
    Drop,
}

/// What the question's name asks the proxy to do.
pub(crate) fn wish(question: &[u8]) -> Wish {
    let length = question.get(12).copied().unwrap_or(0).into();
    match question.get(13..).and_then(|name| name.get(..length)) {
        Some(b"hold") => Wish::Hold,
        Some(b"drop") => Wish::Drop,
        _ => Wish::Answer,
    }
}
