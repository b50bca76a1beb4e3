//! What a request has used, in the header `Server-Timing` of its response, which browsers show.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use crate::memory::{self, Delta};
use crate::meter::Meter;
use crate::report::seldom::caught;
use crate::usage::Usage;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Which responses have the header.
#[derive(Clone, Default)]
pub(super) enum ServerTiming {
    #[default]
    None,
    All,
    Of(Arc<dyn Fn(&Parts) -> bool + Send + Sync>),
}

impl ServerTiming {
    /// Whether the response to this request has it.
    pub(super) fn is_of<B>(&self, request: Request<B>) -> (Request<B>, bool) {
        let Self::Of(is_meant) = self else { return (request, matches!(self, Self::All)) };
        let (parts, body) = request.into_parts();
        let is_meant = caught("the choice of a server timing", || is_meant(&parts), || false);
        (Request::from_parts(parts, body), is_meant)
    }
}

impl fmt::Debug for ServerTiming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::All => "All",
            Self::Of(_) => "Of(..)",
        })
    }
}

/// The value of the header, as it is known by now.
#[cold]
pub(super) fn of(meter: &Meter) -> Option<HeaderValue> {
    memory::aside(|| HeaderValue::try_from(value(&meter.usage(Delta::default()))).ok())
}

/// Adds it to the headers, beside one that the service has set.
pub(super) fn add(headers: &mut HeaderMap, value: HeaderValue) {
    memory::aside(|| headers.append(SERVER_TIMING, value));
}

/// `db;desc="12 queries";dur=3.250, total;dur=4.100`.
///
/// Names are tokens and texts are of digits, letters and spaces, so nothing has to be escaped.
fn value(usage: &Usage) -> String {
    let mut value = String::with_capacity(128);
    let mut add = |name: &str, count: Option<(u64, [&str; 2])>, time: Duration| {
        let separator = if value.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(value, "{separator}{name}");
        if let Some((count, [one, many])) = count {
            let noun = if count == 1 { one } else { many };
            let _ = write!(value, ";desc=\"{count} {noun}\"");
        }
        let micros = time.as_micros();
        let _ = write!(value, ";dur={}.{:03}", micros.div_euclid(1_000), micros.rem_euclid(1_000));
    };
    if let Some(time) = usage.queue_time {
        add("queue", None, time);
    }
    if usage.queries > 0 || !usage.query_time.is_zero() {
        add("db", Some((usage.queries, ["query", "queries"])), usage.query_time);
    }
    if usage.cache_calls > 0 {
        add("cache", Some((usage.cache_calls, ["call", "calls"])), usage.cache_time);
    }
    if usage.external_calls > 0 {
        add("ext", Some((usage.external_calls, ["call", "calls"])), usage.external_time);
    }
    if let Some(time) = usage.busy_time {
        add("busy", None, time);
    }
    add("total", None, usage.total_time);
    value
}
