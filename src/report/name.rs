//! The name of a unit of work.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "http")]
use super::method::Method;
use crate::escape::Escaped;

/// The name of a unit of work, under which its usage and violations are reported.
///
/// Names end up as metric labels and log fields, so keep them few: a route, never a raw path; a
/// kind of job, never its id.
///
/// Its `Display`, which violations, events and files use, is one line: control characters, line
/// breaks and marks that change the direction of a text are escaped as in a Rust literal.
///
/// # Examples
///
/// ```
/// use request_budget::report::Name;
///
/// assert_eq!(Name::from("send_invoices").to_string(), "send_invoices");
/// assert_eq!(Name::from(format!("{}_nightly", "send")).to_string(), "send_nightly");
/// assert_eq!(Name::from("two\nlines").to_string(), r"two\nlines");
/// ```
#[derive(Clone)]
pub struct Name(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
    #[cfg(feature = "http")]
    Unmatched(Verb),
    /// The route as axum's own type, because a string would cost an allocation for each request.
    #[cfg(feature = "axum")]
    Route(Verb, axum::extract::MatchedPath),
    #[cfg(feature = "http")]
    Method(Arc<Method>),
}

/// An HTTP method in one byte, because each request stores one; methods that HTTP does not define
/// share a value.
#[cfg(feature = "http")]
#[derive(Clone, Copy)]
pub(crate) struct Verb(u8);

#[cfg(feature = "http")]
impl Verb {
    const ALL: [&str; 10] =
        ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "_OTHER"];
    /// The index of the value for all methods that HTTP does not define.
    const OTHER: u8 = 9;
    const GET: u8 = 0;

    #[inline]
    pub(crate) fn of(method: &http::Method) -> Self {
        // The most frequent method is compared first.
        if *method == http::Method::GET { Self(Self::GET) } else { Self::find(method) }
    }

    fn find(method: &http::Method) -> Self {
        let known = (0..).zip(Self::ALL).find(|(_, verb)| *verb == method.as_str());
        Self(known.map_or(Self::OTHER, |(place, _)| place))
    }

    fn as_str(self) -> &'static str {
        Self::ALL[usize::from(self.0)]
    }
}

impl Name {
    /// The name of an account that no work uses.
    pub(crate) const NONE: Self = Self(Repr::Static(""));

    /// Names a request whose route is not known.
    #[cfg(feature = "http")]
    pub(crate) const fn unmatched(verb: Verb) -> Self {
        Self(Repr::Unmatched(verb))
    }

    /// Names a call of a gRPC method.
    #[cfg(feature = "http")]
    pub(crate) const fn method(method: Arc<Method>) -> Self {
        Self(Repr::Method(method))
    }

    /// The gRPC method, if it is the name of one.
    #[cfg(feature = "http")]
    pub(crate) fn as_method(&self) -> Option<&Arc<Method>> {
        match &self.0 {
            Repr::Method(method) => Some(method),
            _ => None,
        }
    }

    /// Whether it was created at run time, so that the number of such names is not bounded.
    pub(super) fn is_made(&self) -> bool {
        matches!(self.0, Repr::Shared(_))
    }

    /// Names a request on a route.
    #[cfg(feature = "axum")]
    pub(crate) const fn route(verb: Verb, path: axum::extract::MatchedPath) -> Self {
        Self(Repr::Route(verb, path))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Static(name) => Escaped(name).fmt(f),
            Repr::Shared(name) => Escaped(name).fmt(f),
            #[cfg(feature = "http")]
            Repr::Unmatched(verb) => write!(f, "{} (no route)", verb.as_str()),
            #[cfg(feature = "axum")]
            Repr::Route(verb, path) => write!(f, "{} {}", verb.as_str(), Escaped(path.as_str())),
            #[cfg(feature = "http")]
            Repr::Method(method) => method.fmt(f),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(name))
    }
}

impl From<Cow<'static, str>> for Name {
    fn from(name: Cow<'static, str>) -> Self {
        match name {
            Cow::Borrowed(name) => name.into(),
            Cow::Owned(name) => name.into(),
        }
    }
}
