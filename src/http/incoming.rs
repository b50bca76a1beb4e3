//! Reads headers about the time of a request: the deadline of the caller, and how long the request
//! has waited.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::budget::Budget;
use crate::report::fields::{HEALTH, LEFT_OUT};
use crate::report::seldom::Seldom;

/// The deadline of gRPC: digits, at most eight, and a unit (`H`, `M`, `S`, `m`, `u`, `n`).
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The deadline for plain HTTP: the time left, in milliseconds.
pub const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// When the request reached the first proxy: seconds with a fraction, as nginx sends it
/// (`t=1512379167.574`), or milli-, micro- or nanoseconds, as Heroku (`1512379167574`) and Apache
/// do.
pub const REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
/// The same time under the name that older proxies use.
pub const QUEUE_START: HeaderName = HeaderName::from_static("x-queue-start");

/// Which headers about the time of a request are read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Incoming {
    pub(super) honours_deadline: bool,
    pub(super) queue_time: QueueTime,
}

/// What is done with the time that a request waited before it reached the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueTime {
    /// It is ignored.
    #[default]
    Ignored,
    /// It is reported as [`Usage::queue_time`](crate::Usage::queue_time).
    Measured,
    /// It is reported, and subtracted from the [`total_time`](Budget::total_time).
    Charged,
}

impl Incoming {
    /// The budget of a request with these headers, and how long the request has waited.
    #[inline]
    pub(super) fn apply<'a>(
        self,
        budget: Cow<'a, Budget>,
        headers: &HeaderMap,
    ) -> (Cow<'a, Budget>, Option<Duration>) {
        if self.honours_deadline || self.queue_time != QueueTime::Ignored {
            let (budget, waited) = self.look(budget.into_owned(), headers);
            return (Cow::Owned(budget), waited);
        }
        (budget, None)
    }

    fn look(self, mut budget: Budget, headers: &HeaderMap) -> (Budget, Option<Duration>) {
        if self.honours_deadline
            && let Some(left) = caller_deadline(headers)
        {
            budget = budget.shorten_total_time_for_caller(left);
        }
        let waited = match self.queue_time {
            QueueTime::Ignored => None,
            QueueTime::Measured | QueueTime::Charged => longest_wait(headers, SystemTime::now()),
        };
        if self.queue_time == QueueTime::Charged
            && let Some(waited) = waited
        {
            budget = budget.charge_total_time(waited);
        }
        (budget, waited)
    }
}

/// The shorter of the two headers' timeouts.
fn caller_deadline(headers: &HeaderMap) -> Option<Duration> {
    let grpc = parsed(headers, &GRPC_TIMEOUT, grpc_timeout);
    let plain = parsed(headers, &TIMEOUT_MS, milliseconds);
    [grpc, plain].into_iter().flatten().min()
}

/// The value of a header; an invalid one is ignored, with at most one event a minute.
pub(super) fn parsed<T>(
    headers: &HeaderMap,
    name: &HeaderName,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = headers.get(name)?;
    let parsed = value.to_str().ok().and_then(parse);
    if parsed.is_none() {
        ignore(name, value.as_bytes());
    }
    parsed
}

/// When the request began to wait: the earliest time, where several proxies have sent one.
fn longest_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let wait = |name: &HeaderName, value: &HeaderValue| {
        // A proxy adds a second header, or appends its value to the present one.
        let times = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let wait = |time| {
            let waited = str::from_utf8(time).ok().and_then(|time| waited_since(time, now));
            if waited.is_none() {
                ignore(name, time);
            }
            waited
        };
        times.filter_map(wait).max()
    };
    let waits =
        |name| headers.get_all(name).iter().filter_map(move |value| wait(name, value)).max();
    [&REQUEST_START, &QUEUE_START].into_iter().filter_map(waits).max()
}

/// Emits an event that a header, or a part of one, is ignored; rate limited, since a client can
/// provoke it.
#[cold]
fn ignore(name: &HeaderName, value: &[u8]) {
    static SAID: Seldom = Seldom::new();
    const LONGEST: usize = 100;
    if let Some(left_out) = SAID.admit() {
        let value = &value[..value.len().min(LONGEST)];
        tracing::event!(
            target: HEALTH,
            tracing::Level::DEBUG,
            { LEFT_OUT } = (left_out > 0).then_some(left_out),
            "the header {name} is ignored: \"{}\" makes no sense there",
            value.escape_ascii(),
        );
    }
}

/// Parses digits only: no sign, no white space, no overflow.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

pub(super) fn milliseconds(text: &str) -> Option<Duration> {
    digits(text).map(Duration::from_millis)
}

pub(super) fn grpc_timeout(text: &str) -> Option<Duration> {
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

/// How long ago a moment was; one in the future, by the clock of another machine, counts as now.
fn waited_since(text: &str, now: SystemTime) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(24 * 3_600);
    let text = text.strip_prefix("t=").unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let (whole, places) = (digits(whole)?, u32::try_from(fraction.len()).ok()?);
    let fraction = digits(fraction).filter(|_| places <= 9)?;
    // A time in seconds has ten digits until the year 2286; larger numbers are in smaller units.
    let unit: u64 = match whole {
        1..10_000_000_000 => 1_000_000_000,
        10_000_000_000..10_000_000_000_000 => 1_000_000,
        10_000_000_000_000..10_000_000_000_000_000 => 1_000,
        10_000_000_000_000_000.. => 1,
        0 => return None,
    };
    let nanos = u128::from(unit).checked_mul(fraction.into())?.checked_div(10_u128.pow(places))?;
    let nanos = u128::from(unit).checked_mul(whole.into())?.checked_add(nanos)?;
    let start = UNIX_EPOCH.checked_add(Duration::from_nanos(u64::try_from(nanos).ok()?))?;
    match now.duration_since(start) {
        Ok(waited) => (waited <= LONGEST).then_some(waited),
        Err(early) => (early.duration() <= LONGEST).then_some(Duration::ZERO),
    }
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
        assert_eq!(waited("1512379167574000000"), Some(426));
        assert_eq!(waited("1512379167574.5"), Some(425));
        assert_eq!(waited("1512379999"), Some(0), "the clocks differ a lot");
        for bad in [
            "",
            "t=",
            "-5",
            "t=x",
            "0",
            "1",
            "1512379167.-5",
            "1512279167",
            "1512479999",
            "99999999999999999",
            "1512379167.0000000001",
        ] {
            assert_eq!(waited(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn caller_may_only_shorten() {
        let incoming = Incoming { honours_deadline: true, ..Incoming::default() };
        let total = |budget: Budget, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_MS, HeaderValue::from_static(value));
            let (budget, _) = incoming.apply(Cow::Owned(budget), &headers);
            budget.limit(crate::Resource::TotalTime).and_then(|limit| limit.hard_value())
        };
        let millis = |millis| Some(crate::resource::Amount::Time(Duration::from_millis(millis)));
        let ours = Budget::new().total_time(Duration::from_secs(1));
        assert_eq!(total(ours.clone(), "300"), millis(300));
        assert_eq!(total(ours.clone(), "3000"), millis(1_000));
        assert_eq!(total(ours, "nonsense"), millis(1_000));
        assert_eq!(total(Budget::new(), "300"), millis(300));
    }

    #[test]
    fn of_several_proxies_the_first_counts() {
        let now = UNIX_EPOCH + Duration::from_millis(1_512_379_168_000);
        let waited = |sent: &[(&HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for &(name, value) in sent {
                headers.append(name, HeaderValue::from_static(value));
            }
            longest_wait(&headers, now).map(|waited| waited.as_millis())
        };
        let (late, early) = ("t=1512379167.900", "t=1512379167.600");
        assert_eq!(waited(&[(&REQUEST_START, late), (&REQUEST_START, early)]), Some(400));
        assert_eq!(waited(&[(&REQUEST_START, late), (&QUEUE_START, early)]), Some(400));
        let joined = "t=1512379167.900, t=1512379167.600,t=1512379167700";
        assert_eq!(waited(&[(&QUEUE_START, joined)]), Some(400));
        assert_eq!(waited(&[(&REQUEST_START, "1, yesterday, , t=1512379167.600")]), Some(400));
        assert_eq!(waited(&[(&REQUEST_START, "yesterday"), (&QUEUE_START, late)]), Some(100));
        assert_eq!(waited(&[(&REQUEST_START, "yesterday, "), (&QUEUE_START, "1")]), None);
        assert_eq!(waited(&[]), None);
    }
}
