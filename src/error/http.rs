//! Errors of bodies and of calls: either the inner error, or the cut.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use h2::Reason;

use super::Cut;

/// The boxed error that tower's services use.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The error of a [`ResponseBody`](crate::http::ResponseBody): that of the inner body, or the cut.
///
/// An error is the only way to end a body early that a client can distinguish from its regular end.
/// hyper resets an HTTP/2 stream with the reason that it finds in the chain of the error's sources:
/// that of the inner body's error is found as without the layer, and a cut resets with `CANCEL`.
///
/// Its `Display` is that of the error it holds, and [`source`](Error::source) is the source of that
/// error. If that has no source, [`source`](Error::source) is the error itself, so that a search of
/// the chain for a type finds it.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a body fails by itself or is cut; there is no third")]
pub enum BodyError {
    /// The error of the inner body, with the same `Display`.
    Inner(Box<dyn Error + Send + Sync>),
    /// A hard limit was crossed before the end.
    Cut(Cut),
}

/// The error of a call through an [`ExternalService`](crate::http::ExternalService).
///
/// The error of the client is boxed, as usual in tower; `downcast_ref` recovers its type. The
/// `Display` is that of the error it holds, and [`source`](Error::source) is the source of that
/// error. If that has no source, [`source`](Error::source) is the error itself, so that a search of
/// the chain for a type finds it.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a call fails by itself or is cut; there is no third")]
pub enum ExternalError {
    /// The error of the client, with the same `Display`.
    Inner(Box<dyn Error + Send + Sync>),
    /// The call exceeded its timeout, or was refused.
    Cut(Cut),
}

impl BodyError {
    /// Creates the error of a body that is cut.
    pub(crate) fn cut(cut: Cut) -> Self {
        Self::Cut(cut.meaning(Arc::new(h2::Error::from(Reason::CANCEL))))
    }
}

impl ExternalError {
    /// Wraps the error of the client.
    pub(crate) fn inner(error: impl Into<BoxError>) -> Self {
        Self::Inner(error.into())
    }

    /// Creates the error of a call that is cut.
    pub(crate) fn cut(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

/// What these errors show of the error that they hold.
macro_rules! transparent {
    ($($name:ident)*) => {$(
        impl $name {
            fn held(&self) -> &(dyn Error + 'static) {
                match self {
                    Self::Inner(error) => &**error,
                    Self::Cut(cut) => cut,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self.held(), f)
            }
        }

        impl Error for $name {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                match self {
                    Self::Inner(error) => Some(cause(&**error)),
                    Self::Cut(cut) => Some(cut),
                }
            }
        }
    )*};
}

transparent!(BodyError ExternalError);

/// The next error in the chain after a wrapper that has the same `Display` as this one.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().unwrap_or(error)
}

/// The error that one of these errors holds, for the search for a cut.
pub(super) fn held<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    #[cfg(feature = "reqwest-middleware")]
    if let Some(reqwest_middleware::Error::Middleware(error)) = error.downcast_ref() {
        return Some(&**error as &'a (dyn Error + 'static));
    }
    let body = error.downcast_ref().map(BodyError::held);
    body.or_else(|| error.downcast_ref().map(ExternalError::held))
}
