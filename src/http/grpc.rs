//! gRPC: recognises calls, answers calls that are cut, and reads the outcome of a call.

use bytes::{Buf, Bytes};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::reject::Reject;
use crate::report::Outcome;
use crate::resource::Resource;
use crate::violation::Violation;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

const DEADLINE_EXCEEDED: u8 = 4;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;

/// Answers a gRPC call that was cut by a trailers-only response: `DEADLINE_EXCEEDED` if the time
/// was up, and `RESOURCE_EXHAUSTED` for every other limit.
///
/// A layer without a [`Reject`] of the user's answers requests with `content-type:
/// application/grpc` in this way. The message names the limit only if
/// [`with_limits`](Self::with_limits) is set.
///
/// # Examples
///
/// One layer for REST and gRPC, each answered in its own way:
///
/// ```
/// use request_budget::http::{GrpcStatus, ProblemDetails};
/// use request_budget::{Budget, BudgetLayer};
///
/// let layer = BudgetLayer::new(Budget::new())
///     .with_reject(ProblemDetails::new().with_grpc(GrpcStatus::new().with_limits()));
/// # let _ = layer;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct GrpcStatus {
    names_limits: bool,
}

impl GrpcStatus {
    /// Creates a status that does not name the limit.
    #[must_use]
    pub const fn new() -> Self {
        Self { names_limits: false }
    }

    /// Also names the resource, what was used of it, and the limit.
    #[must_use]
    pub const fn with_limits(mut self) -> Self {
        self.names_limits = true;
        self
    }

    /// The status, as headers or trailers.
    fn put(self, violation: &Violation, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from(u16::from(code(violation.resource))));
        headers.insert(MESSAGE, encoded(&self.message(violation)));
    }

    fn message(self, violation: &Violation) -> String {
        let Violation { resource, limit, observed, .. } = violation;
        if self.names_limits {
            return format!("{observed} {}, limit {limit}", resource.phrase(observed.is_one()));
        }
        match code(*resource) {
            DEADLINE_EXCEEDED => "the time for the call was up".to_owned(),
            _ => "the call used more than it may".to_owned(),
        }
    }
}

impl Reject for GrpcStatus {
    fn reject(&self, violation: &Violation) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::new());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        self.put(violation, answer.headers_mut());
        answer
    }
}

/// The trailers of a stream that is cut.
pub(super) fn trailers(violation: &Violation) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    GrpcStatus::new().put(violation, &mut trailers);
    trailers
}

fn code(resource: Resource) -> u8 {
    use Resource::{BodyIdle, ExternalTimeout, SlowRequest, TotalTime};
    match resource {
        TotalTime | SlowRequest | BodyIdle | ExternalTimeout => DEADLINE_EXCEEDED,
        _ => RESOURCE_EXHAUSTED,
    }
}

/// Percent-encodes a message as gRPC requires: printable ASCII stays, except `%`.
fn encoded(message: &str) -> HeaderValue {
    use std::fmt::Write;
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => text.push(char::from(byte)),
            // Writing into a string cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    HeaderValue::try_from(text).expect("printable ASCII")
}

/// Whether a request is a gRPC call; reads the header only of POST requests, which all calls are.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && is_grpc(request.headers())
}

/// Whether a route is that of a service, as tonic registers it with axum: "/pkg.Service/{*rest}".
#[cfg(feature = "axum")]
pub(super) fn is_service(route: &str) -> bool {
    let service = route.strip_prefix('/').and_then(|route| route.strip_suffix("/{*rest}"));
    service.is_some_and(|service| service.contains('.') && !service.contains('/'))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let after = value.and_then(|value| value.strip_prefix(b"application/grpc"));
    after.is_some_and(|after| matches!(after, [] | [b'+' | b';' | b' ', ..]))
}

fn status_in(headers: &HeaderMap) -> Option<u8> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// The outcome of a call by the `grpc-status` in its headers or trailers; `None` without one.
///
/// Only codes that mean a failure of the server are errors. The others are answers, as 404 is.
pub(super) fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    const UNKNOWN: u8 = 2;
    const INTERNAL: u8 = 13;
    const UNAVAILABLE: u8 = 14;
    const DATA_LOSS: u8 = 15;
    Some(match status_in(headers)? {
        UNKNOWN | DEADLINE_EXCEEDED | UNIMPLEMENTED | INTERNAL | UNAVAILABLE | DATA_LOSS => {
            Outcome::Error
        }
        _ => Outcome::Ok,
    })
}

/// Whether a response shows that the method exists.
pub(super) fn shows_the_method(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_success() && status_in(headers) != Some(UNIMPLEMENTED)
}

/// The position within the messages of a stream, because trailers may be sent only between two
/// messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Framing {
    /// Inside the prefix of five bytes: how many of them have passed, and the length read so far.
    prefix: u8,
    length: u32,
    /// Inside a message: how many of its bytes are still to come.
    left: u32,
    /// Unknown, because the data does not have this form.
    is_lost: bool,
}

impl Framing {
    pub(super) fn is_between_messages(self) -> bool {
        !self.is_lost && self.prefix == 0 && self.left == 0
    }

    pub(super) fn follow(&mut self, data: &impl Buf) {
        let mut bytes = data.chunk();
        self.is_lost |= bytes.len() != data.remaining();
        while !self.is_lost && !bytes.is_empty() {
            if self.left > 0 {
                let most = usize::try_from(self.left).unwrap_or(usize::MAX);
                let taken = bytes.len().min(most);
                self.left = self.left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                bytes = &bytes[taken..];
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(bytes[0]);
            }
            self.prefix = self.prefix.saturating_add(1);
            bytes = &bytes[1..];
            if self.prefix == 5 {
                *self = Self { left: self.length, ..Self::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(encoded("34.0 MiB, 5% \u{b5}s\n"), "34.0 MiB, 5%25 %C2%B5s%0A");
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        let is = |method: Method, value: &'static str| {
            is_call(
                &Request::builder().method(method).header(CONTENT_TYPE, value).body(()).unwrap(),
            )
        };
        for value in ["application/grpc", "application/grpc+proto", "application/grpc;charset=x"] {
            assert!(is(Method::POST, value), "{value}");
            assert!(!is(Method::GET, value), "{value}");
        }
        for value in ["application/grpc-web", "application/json", "application/grp", ""] {
            assert!(!is(Method::POST, value), "{value}");
        }
    }

    #[test]
    fn trailers_fit_between_messages_only() {
        let mut framing = Framing::default();
        let mut after = |bytes: &'static [u8]| {
            framing.follow(&bytes);
            framing.is_between_messages()
        };
        assert!(after(b""));
        assert!(after(b"\0\0\0\0\x03abc\0\0\0\0\0"));
        assert!(!after(b"\0\0\0"));
        assert!(!after(b"\x01\x00"));
        assert!(!after(&[7; 255]));
        assert!(after(&[7; 1]));
        framing.follow(&b"\0\0\0\0\x01".chain(&b"a"[..]));
        assert!(!framing.is_between_messages(), "in several pieces it is not followed");
    }
}
