//! Errors of bodies and of calls: the wrapped one's own, or the cut.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use h2::Reason;

use crate::error::Cut;

/// Any error, as tower's stacks pass them on.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// The error of a [`ResponseBody`](super::ResponseBody): the body's own, or the cut.
///
/// An error is the only way to end a body early that a client can tell from its end. hyper resets an HTTP/2
/// stream with the reason that it finds in the chain of the error's sources: that of the body's own error
/// is found as without the layer, and a cut resets with `CANCEL`.
///
/// It prints as what it holds, and [`source`](Error::source) is the source of that. What has no source is
/// its own, so that whoever looks for a type in the chain finds it.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a body fails by itself or is cut; there is no third")]
pub enum BodyError {
    /// The error of the wrapped body; prints as that error does.
    Inner(Box<dyn Error + Send + Sync>),
    /// A hard limit was crossed before the end.
    Cut(Cut),
}

/// The error of a call through an [`ExternalService`](super::ExternalService).
///
/// The error of the client is boxed, as usual in tower; `downcast_ref` has its type back. It prints as what
/// it holds, and [`source`](Error::source) is the source of that. What has no source is its own, so that
/// whoever looks for a type in the chain finds it.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a call fails by itself or is cut; there is no third")]
pub enum ExternalError {
    /// The error of the client; prints as that error does.
    Inner(Box<dyn Error + Send + Sync>),
    /// The time for the call was up, or it was refused.
    Cut(Cut),
}

impl BodyError {
    /// The end of a body that is cut.
    pub(super) fn cut(cut: Cut) -> Self {
        Self::Cut(cut.meaning(Arc::new(h2::Error::from(Reason::CANCEL))))
    }
}

impl ExternalError {
    /// The error of the client.
    pub(super) fn inner(error: impl Into<BoxError>) -> Self {
        Self::Inner(error.into())
    }

    /// A call that is cut.
    pub(super) fn cut(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Cut(cut) => cut.fmt(f),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Inner(error) => Some(cause(&**error)),
            Self::Cut(cut) => Some(cut),
        }
    }
}

impl fmt::Display for ExternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Cut(cut) => cut.fmt(f),
        }
    }
}

impl Error for ExternalError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Inner(error) => Some(cause(&**error)),
            Self::Cut(cut) => Some(cut),
        }
    }
}

/// What comes next in the chain of an error that prints as this one does.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().unwrap_or(error)
}

/// What these errors hold, for whoever looks for a cut in it.
pub(crate) fn held<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let body = error.downcast_ref::<BodyError>().map(|error| match error {
        BodyError::Inner(error) => &**error as &'a (dyn Error + 'static),
        BodyError::Cut(cut) => cut,
    });
    let call = || {
        error.downcast_ref::<ExternalError>().map(|error| match error {
            ExternalError::Inner(error) => &**error as &'a (dyn Error + 'static),
            ExternalError::Cut(cut) => cut,
        })
    };
    #[cfg(feature = "reqwest-middleware")]
    if let Some(reqwest_middleware::Error::Middleware(error)) = error.downcast_ref() {
        return Some(&**error as &'a (dyn Error + 'static));
    }
    body.or_else(call)
}
