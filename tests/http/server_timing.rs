//! The header `Server-Timing` of responses.

use std::convert::Infallible;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use request_budget::db::{Query, executed};
use request_budget::http::{QueueTime, ResponseBody};
use request_budget::{Budget, BudgetLayer, ExternalExt, Limit};
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceExt};

type Body = http_body_util::Full<bytes::Bytes>;

/// The answer of a layer around a service that does this.
async fn answer<F>(
    layer: BudgetLayer<Budget>,
    request: Request<()>,
    handler: impl Fn() -> F,
) -> Response<ResponseBody<Body>>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = tower::service_fn(move |_: Request<()>| {
        let handled = handler();
        async { Ok::<_, Infallible>(handled.await) }
    });
    layer.layer(service).oneshot(request).await.expect("infallible")
}

async fn empty() -> Response<Body> {
    Response::default()
}

/// One metric, by the grammar of the standard: `name *( ";" param "=" ( token / quoted-string ) )`.
#[derive(Debug, PartialEq)]
struct Metric {
    name: String,
    parameters: Vec<(String, String)>,
}

fn metrics(value: &HeaderValue) -> Vec<Metric> {
    let mut rest = value.to_str().expect("visible characters");
    let mut metrics = Vec::new();
    loop {
        let mut metric = Metric { name: token(&mut rest), parameters: Vec::new() };
        while let Some(after) = rest.strip_prefix(';') {
            rest = after;
            let name = token(&mut rest);
            rest = rest.strip_prefix('=').expect("a value");
            metric.parameters.push((name, word(&mut rest)));
        }
        metrics.push(metric);
        match rest.strip_prefix(", ") {
            Some(next) => rest = next,
            None => break,
        }
    }
    assert_eq!(rest, "");
    metrics
}

fn token(rest: &mut &str) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
    assert!(end > 0, "no token: {rest}");
    let (token, after) = rest.split_at(end);
    *rest = after;
    token.to_owned()
}

fn word(rest: &mut &str) -> String {
    let Some(quoted) = rest.strip_prefix('"') else { return token(rest) };
    let (text, after) = quoted.split_once('"').expect("a closing quote");
    assert!(!text.contains('\\'), "{text}");
    *rest = after;
    text.to_owned()
}

/// The name, text and milliseconds of each.
fn shown(value: &HeaderValue) -> Vec<(String, Option<String>, f64)> {
    let shown = |metric: Metric| {
        let of = |name: &str| {
            let named = metric.parameters.iter().find(|(known, _)| known == name);
            named.map(|(_, value)| value.clone())
        };
        let time = of("dur").expect("a time").parse().expect("a number");
        (metric.name.clone(), of("desc"), time)
    };
    metrics(value).into_iter().map(shown).collect()
}

#[tokio::test(start_paused = true)]
async fn all_that_was_used_up_to_the_headers_is_shown() {
    let layer = BudgetLayer::new(Budget::new()).with_server_timing();
    let answer = answer(layer, Request::new(()), || async {
        let query = Query::begin("SELECT a").await.unwrap();
        advance(Duration::from_millis(3)).await;
        drop(query);
        executed("SELECT b", Duration::from_micros(2_500), 1);
        for _ in 0..2 {
            sleep(Duration::from_secs(3)).external("payments").await.unwrap();
        }
        empty().await
    });
    let answer = answer.await;
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        ("db".to_owned(), text("2 queries"), 5.5),
        ("ext".to_owned(), text("2 calls"), 6_000.0),
        ("total".to_owned(), None, 6_003.0),
    ];
    assert_eq!(shown(&answer.headers()["server-timing"]), expected);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_used_is_left_out() {
    let layer = BudgetLayer::new(Budget::new()).with_server_timing();
    let timing = answer(layer, Request::new(()), empty).await;
    assert_eq!(timing.headers()["server-timing"], "total;dur=0.000");
    let layer = BudgetLayer::new(Budget::new()).with_server_timing();
    let one = || async {
        executed("SELECT a", Duration::ZERO, 1);
        empty().await
    };
    let timing = answer(layer, Request::new(()), one).await;
    let expected = "db;desc=\"1 query\";dur=0.000, total;dur=0.000";
    assert_eq!(timing.headers()["server-timing"], expected);
}

#[tokio::test]
async fn the_queue_and_the_executor_are_shown_where_they_are_measured() {
    let budget = Budget::new().poll_time(Duration::from_secs(1));
    let layer = BudgetLayer::new(budget).with_queue_time(QueueTime::Measured).with_server_timing();
    let mut request = Request::new(());
    request.headers_mut().insert("x-request-start", HeaderValue::from_static("t=4000000000"));
    let answer = answer(layer, request, empty).await;
    let shown = shown(&answer.headers()["server-timing"]);
    let names: Vec<_> = shown.iter().map(|(name, ..)| &**name).collect();
    // That time is ignored, since it is more than a day away.
    assert_eq!(names, ["busy", "total"]);
    assert!(shown[0].2 <= shown[1].2, "{shown:?}");

    let layer = BudgetLayer::new(Budget::new()).with_queue_time(QueueTime::Measured);
    let mut request = Request::new(());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let started = HeaderValue::try_from(format!("t={}.000", now.as_secs() - 10)).unwrap();
    request.headers_mut().insert("x-request-start", started);
    let answer = self::answer(layer.with_server_timing(), request, empty).await;
    let shown = self::shown(&answer.headers()["server-timing"]);
    assert_eq!((&*shown[0].0, shown.len()), ("queue", 2));
    assert!(shown[0].2 >= 10_000.0, "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_service_shows_itself_is_kept() {
    let layer = BudgetLayer::new(Budget::new()).with_server_timing();
    let answer = answer(layer, Request::new(()), || async {
        let mut response = Response::<Body>::default();
        response.headers_mut().insert("server-timing", HeaderValue::from_static("render;dur=7"));
        response
    });
    let answer = answer.await;
    let all: Vec<_> = answer.headers().get_all("server-timing").iter().collect();
    assert_eq!(all, ["render;dur=7", "total;dur=0.000"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_request_that_was_cut_has_it_as_well() {
    let budget = Budget::new().total_time(Duration::from_secs(1)).external_calls(Limit::hard(9));
    let layer = BudgetLayer::new(budget).with_server_timing();
    let never = || async {
        sleep(Duration::from_secs(3_600)).external("payments").await.unwrap();
        empty().await
    };
    let answer = answer(layer, Request::new(()), never).await;
    assert_eq!(answer.status(), 503);
    let shown = shown(&answer.headers()["server-timing"]);
    let (name, text, time) = shown.last().unwrap();
    assert_eq!((&**name, text), ("total", &None));
    assert!((1_000.0..1_010.0).contains(time), "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn it_is_shown_where_it_is_asked_for_only() {
    let plain = answer(BudgetLayer::new(Budget::new()), Request::new(()), empty).await;
    assert!(!plain.headers().contains_key("server-timing"));
    let is_internal = |request: &Parts| match request.uri.path() {
        "/panics" => panic!("it does"),
        path => path == "/internal" && request.extensions.get::<u32>() == Some(&7),
    };
    for (path, extension, is_shown) in [
        ("/internal", 7_u32, true),
        ("/internal", 8, false),
        ("/", 7, false),
        ("/panics", 7, false),
    ] {
        let request = Request::get(path).extension(extension).body(()).unwrap();
        let layer = BudgetLayer::new(Budget::new()).with_server_timing_of(is_internal);
        let answer = answer(layer, request, empty).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("server-timing"), is_shown, "{path}");
    }
}
