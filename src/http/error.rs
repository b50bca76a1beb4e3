//! The error of a response body.

use std::error::Error;
use std::fmt;

use crate::error::Cut;

/// The error of a [`ResponseBody`](super::ResponseBody): the body's own, or the cut.
///
/// An error is the only way to end a body early that a client can tell from its end.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a body fails by itself or is cut; there is no third")]
pub enum BodyError<E> {
    /// The error of the wrapped body; prints as that error does.
    Inner(E),
    /// A hard limit was crossed before the end.
    Cut(Cut),
}

impl<E: fmt::Display> fmt::Display for BodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Cut(cut) => cut.fmt(f),
        }
    }
}

// Asks for `Display` and not for `Error`, which the boxed errors that bodies often have lack.
impl<E: fmt::Debug + fmt::Display> Error for BodyError<E> {}
