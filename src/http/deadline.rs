//! Deadlines that travel: the caller's, which may shorten ours, and ours, which goes along with calls.

use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tower_layer::Layer;
use tower_service::Service;

use crate::budget::Budget;
use crate::report::fields::HEALTH;

/// The deadline of gRPC: digits, at most eight, and a unit (`H`, `M`, `S`, `m`, `u`, `n`).
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The same for plain HTTP: the time left, in milliseconds.
pub const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// When the request reached the first proxy, as nginx (`t=1512379167.574`) and Heroku
/// (`1512379167574`) send it.
pub const REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");

/// What the headers of a request may tell about its time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Incoming {
    pub(super) honours_deadline: bool,
    pub(super) queue_time: QueueTime,
}

/// What becomes of the time that a request waited before it reached the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueTime {
    /// It is not looked at.
    #[default]
    Ignored,
    /// It is in [`Usage::queue_time`](crate::Usage::queue_time).
    Measured,
    /// It is measured, and taken from the [`total_time`](Budget::total_time).
    Charged,
}

impl Incoming {
    /// The budget that is left for a request with these headers, and how long the request has waited.
    pub(super) fn apply(self, budget: Budget, headers: &HeaderMap) -> (Budget, Option<Duration>) {
        let mut budget = budget;
        if self.honours_deadline
            && let Some(left) = caller_s_deadline(headers)
        {
            budget = budget.shorten_total_time(left);
        }
        let waited = match self.queue_time {
            QueueTime::Ignored => None,
            QueueTime::Measured | QueueTime::Charged => {
                parsed(headers, &REQUEST_START, |text| waited_since(text, SystemTime::now()))
            }
        };
        if self.queue_time == QueueTime::Charged
            && let Some(waited) = waited
        {
            budget = budget.charge_total_time(waited);
        }
        (budget, waited)
    }
}

/// The shorter of what the two headers say.
fn caller_s_deadline(headers: &HeaderMap) -> Option<Duration> {
    let grpc = parsed(headers, &GRPC_TIMEOUT, grpc_timeout);
    let plain = parsed(headers, &TIMEOUT_MS, milliseconds);
    [grpc, plain].into_iter().flatten().min()
}

/// The value of a header; one that makes no sense is ignored, and said to be.
fn parsed<T>(
    headers: &HeaderMap,
    name: &HeaderName,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = headers.get(name)?;
    let parsed = value.to_str().ok().and_then(parse);
    if parsed.is_none() {
        tracing::debug!(target: HEALTH, "the header {name} is ignored: {value:?} makes no sense there");
    }
    parsed
}

/// Digits alone: no sign, no white space, nothing that does not fit.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn milliseconds(text: &str) -> Option<Duration> {
    digits(text).map(Duration::from_millis)
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 {
        return None;
    }
    let number = digits(number)?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// How long ago that was; a little in the future is the clocks of two machines, and counts as now.
fn waited_since(text: &str, now: SystemTime) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(24 * 3_600);
    const SKEW: Duration = Duration::from_secs(60);
    let text = text.strip_prefix("t=").unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let (whole, fraction_digits) = (digits(whole)?, fraction.len());
    let fraction = digits(fraction).filter(|_| fraction_digits <= 9)?;
    // Seconds have ten digits until the year 2286; what is larger is in milli- or microseconds.
    let start = match whole {
        1..10_000_000_000 => {
            let places = u32::try_from(9_usize.checked_sub(fraction_digits)?).ok()?;
            let nanos = fraction.checked_mul(10_u64.pow(places))?;
            Duration::from_secs(whole).checked_add(Duration::from_nanos(nanos))?
        }
        10_000_000_000..10_000_000_000_000 => Duration::from_millis(whole),
        10_000_000_000_000..10_000_000_000_000_000 => Duration::from_micros(whole),
        _ => return None,
    };
    let start = UNIX_EPOCH.checked_add(start)?;
    match now.duration_since(start) {
        Ok(waited) => (waited <= LONGEST).then_some(waited),
        Err(early) => (early.duration() <= SKEW).then_some(Duration::ZERO),
    }
}

/// Sends what is left of the [`total_time`](Budget::total_time) along with each call of an HTTP client.
///
/// As `grpc-timeout` and as `x-request-timeout-ms`, unless the request has a shorter one already. Outside
/// every unit of work, or without a hard total time, nothing is sent. A service that is told so with
/// [`BudgetLayer::with_incoming_deadlines`](super::BudgetLayer::with_incoming_deadlines) honours it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::convert::Infallible;
/// use std::time::Duration;
/// use http::Request;
/// use request_budget::http::DeadlineLayer;
/// use request_budget::{Budget, BudgetExt};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// let client = DeadlineLayer::new().layer(service_fn(|request: Request<()>| async move {
///     Ok::<_, Infallible>(request.headers().get("x-request-timeout-ms").cloned())
/// }));
/// let work = async {
///     tokio::time::advance(Duration::from_millis(700)).await;
///     client.oneshot(Request::new(())).await.unwrap()
/// };
/// let budget = Budget::new().total_time(Duration::from_secs(1));
/// let sent = work.budgeted("order", budget).await.unwrap();
/// assert_eq!(sent.unwrap(), "300");
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DeadlineLayer;

impl DeadlineLayer {
    /// The layer; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner }
    }
}

/// A client that sends the time left along. See [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S> DeadlineService<S> {
    /// The inner client.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner client, to be changed.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Takes the inner client out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(left) = Budget::remaining_time() {
            let headers = request.headers_mut();
            let (grpc, plain) = values(left);
            // A header that is there may be of a proxy that passes on what it was sent.
            if parsed(headers, &GRPC_TIMEOUT, grpc_timeout).is_none_or(|there| there > left) {
                headers.insert(GRPC_TIMEOUT, grpc);
            }
            if parsed(headers, &TIMEOUT_MS, milliseconds).is_none_or(|there| there > left) {
                headers.insert(TIMEOUT_MS, plain);
            }
        }
        self.inner.call(request)
    }
}

/// The values of both headers, rounded down: a caller must not promise more than it has.
fn values(left: Duration) -> (HeaderValue, HeaderValue) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let grpc = match millis {
        0..100_000_000 => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    };
    let grpc = HeaderValue::try_from(grpc).expect("digits and a letter");
    (grpc, HeaderValue::from(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(grpc_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "m", "-1m", "+1m", "1", "1s", " 1m", "100000000m", "1.5S", "ümm", "1ü"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn plain_timeouts_are_digits_alone() {
        assert_eq!(digits("250"), Some(250));
        for bad in ["", "-1", "+1", " 1", "1e3", "99999999999999999999999"] {
            assert_eq!(digits(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn start_of_the_request_is_read_as_proxies_send_it() {
        let now = UNIX_EPOCH + Duration::from_millis(1_512_379_168_000);
        let waited = |text| waited_since(text, now).map(|waited| waited.as_millis());
        assert_eq!(waited("t=1512379167.574"), Some(426));
        assert_eq!(waited("1512379167574"), Some(426));
        assert_eq!(waited("t=1512379167574000"), Some(426));
        assert_eq!(waited("1512379167"), Some(1_000));
        assert_eq!(waited("t=1512379168.001"), Some(0), "the clocks differ a little");
        for bad in [
            "",
            "t=",
            "-5",
            "t=x",
            "0",
            "1",
            "1512379167.-5",
            "1512379999",
            "99999999999999999",
            "1512379167.0000000001",
        ] {
            assert_eq!(waited(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn time_that_is_left_is_rounded_down() {
        let sent = |left| {
            let (grpc, plain) = values(left);
            (
                grpc.to_str().expect("is ASCII").to_owned(),
                plain.to_str().expect("is ASCII").to_owned(),
            )
        };
        let expected = |grpc: &str, plain: &str| (grpc.to_owned(), plain.to_owned());
        assert_eq!(sent(Duration::from_micros(1_999)), expected("1m", "1"));
        assert_eq!(sent(Duration::ZERO), expected("0m", "0"));
        assert_eq!(sent(Duration::from_secs(200_000)), expected("200000S", "200000000"));
    }

    #[test]
    fn caller_may_only_shorten() {
        let incoming = Incoming { honours_deadline: true, ..Incoming::default() };
        let total = |budget: Budget, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_MS, HeaderValue::from_static(value));
            let (budget, _) = incoming.apply(budget, &headers);
            budget.limit(crate::Resource::TotalTime).and_then(|limit| limit.hard_value())
        };
        let millis = |millis| Some(crate::resource::Amount::Time(Duration::from_millis(millis)));
        let ours = Budget::new().total_time(Duration::from_secs(1));
        assert_eq!(total(ours.clone(), "300"), millis(300));
        assert_eq!(total(ours.clone(), "3000"), millis(1_000));
        assert_eq!(total(ours, "nonsense"), millis(1_000));
        assert_eq!(total(Budget::new(), "300"), millis(300));
    }
}
