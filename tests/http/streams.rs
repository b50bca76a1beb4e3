//! Bodies that are meant to last: their budget ends with the headers, or bounds their pauses.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use request_budget::db::Query;
use request_budget::http::ResponseBody;
use request_budget::report::Outcome;
use request_budget::{Budget, ExternalExt, Limit};
use tokio::time::{Instant, advance, sleep};
use tower::Service;

use crate::support::{
    Given, Ledger, Script, Step, body, budgeted, data, handled, ms, next, pass, poll_once,
};
use Step::{Data, Pass, Wait};

fn events() -> Budget {
    Budget::new().total_time(Duration::from_secs(1)).until_headers()
}

#[tokio::test(start_paused = true)]
async fn a_body_outlives_a_total_time_that_ends_with_the_headers() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a"), Wait, Pass(ms(60_000)), Data("b")]);
    let mut body = body(events().slow_request(ms(1_000)), &ledger, script);
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(next(&mut body), Given::Nothing);
    advance(ms(60_000)).await;
    assert_eq!(next(&mut body), data("b"));
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.messages(), [""; 0]);
    assert_eq!(ledger.end().usage.total_time, ms(120_000));
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_late_are_cut_all_the_same() {
    let ledger = Ledger::default();
    let started = Instant::now();
    let answer = handled(events(), &ledger, pending()).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(started.elapsed(), ms(1_000));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_ready_too_late_are_reported_with_the_time_they_took() {
    let ledger = Ledger::default();
    let mut future = handled(events(), &ledger, async {
        pass(ms(1_500));
        Script::new([Pass(ms(1_500)), Data("a"), Data("b")])
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(ledger.messages(), ["GET (no route): 1.5s in total, limit 1s: own code"]);
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_is_too_long_ends_the_body() {
    let ledger = Ledger::default();
    let budget = events().body_idle(Duration::from_secs(30));
    let script = Script::new([Data("a"), Wait, Wait]);
    let body = body(budget, &ledger, script);
    let started = Instant::now();
    let error = body.collect().await.unwrap_err();
    let cut = "GET (no route) was cut: 30s without a piece of the body, limit 30s: own code";
    assert_eq!(error.to_string(), cut);
    assert_eq!(started.elapsed(), ms(30_000));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    assert_eq!(
        ledger.messages(),
        ["GET (no route): 30s without a piece of the body, limit 30s: own code"]
    );
}

#[tokio::test(start_paused = true)]
async fn each_piece_starts_the_pause_anew() {
    let ledger = Ledger::default();
    let budget = events().body_idle(Duration::from_secs(30));
    let script = Script::new([Wait, Data("a"), Wait, Data("b"), Wait, Data("c")]);
    let mut body = body(budget, &ledger, script);
    for piece in ["a", "b", "c"] {
        assert_eq!(next(&mut body), Given::Nothing);
        advance(ms(29_000)).await;
        assert_eq!(next(&mut body), data(piece));
        // The client takes its time, which is no pause of the body.
        advance(ms(60_000)).await;
    }
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.messages(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_soft_limit_on_pauses_reports_when_the_piece_is_there() {
    let ledger = Ledger::default();
    let budget = Budget::new().body_idle(Limit::soft(Duration::from_secs(1)));
    let mut body = body(budget, &ledger, Script::new([Wait, Data("a")]));
    assert_eq!(next(&mut body), Given::Nothing);
    advance(ms(5_000)).await;
    assert_eq!(next(&mut body), data("a"));
    let message = "GET (no route): 5s without a piece of the body, limit 1s: own code";
    assert_eq!(ledger.messages(), [message]);
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_ready_too_late_leave_the_body_whole() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a"), Wait, Data("b")]);
    let mut request = handled(events().slow_request(ms(900)), &ledger, async {
        pass(ms(1_500));
        script
    });
    let Poll::Ready(answer) = poll_once(request.as_mut()) else { panic!("ready") };
    let mut body = answer.into_body();
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(next(&mut body), Given::Nothing);
    assert_eq!(next(&mut body), data("b"));
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    let messages = [
        "GET (no route): 1.5s in total, limit 1s: own code",
        "GET (no route): 1.5s in total, limit 900ms: own code",
    ];
    assert_eq!(ledger.messages(), messages);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_is_the_cause() {
    let ledger = Ledger::default();
    let budget = Budget::new().total_time(ms(30_000));
    let script = Script::new([Data("a"), Data("b"), Wait, Data("c"), Data("d")]);
    let mut body = body(budget, &ledger, script);
    assert_eq!(next(&mut body), data("a"));
    advance(ms(12_000)).await;
    assert_eq!(next(&mut body), data("b"));
    advance(ms(8_000)).await;
    assert_eq!(next(&mut body), Given::Nothing);
    // Asked for, and not there: that is the body's time.
    advance(ms(4_000)).await;
    assert_eq!(next(&mut body), data("c"));
    advance(ms(11_000)).await;
    let message = "35s in total, limit 30s: waiting for the client to read, 31s in all";
    assert_eq!(next(&mut body), Given::Cut(format!("GET (no route) was cut: {message}")));
    assert_eq!(ledger.messages(), [format!("GET (no route): {message}")]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_unread_tells_of_the_client() {
    let ledger = Ledger::default();
    let mut body = body(Budget::new().slow_request(ms(1_000)), &ledger, Script::new([Data("a")]));
    assert_eq!(next(&mut body), data("a"));
    advance(ms(9_000)).await;
    drop(body);
    let message =
        "GET (no route): 9s in total, limit 1s: waiting for the client to read, 9s in all";
    assert_eq!(ledger.messages(), [message]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_has_nothing_to_hand_out_is_no_slow_client() {
    let ledger = Ledger::default();
    let script = Script::new([Data("a"), Wait, Wait]);
    let body = body(Budget::new().total_time(ms(30_000)), &ledger, script);
    body.collect().await.unwrap_err();
    assert_eq!(ledger.messages(), ["GET (no route): 30s in total, limit 30s: own code"]);
}

type Piece = Result<Frame<Bytes>, Infallible>;

/// A body of the one piece that this makes.
fn made_by(
    budget: Budget,
    ledger: &Ledger,
    piece: impl Future<Output = ()> + Send + 'static,
) -> Pin<Box<ResponseBody<impl http_body::Body<Data = Bytes, Error = Infallible>>>> {
    let piece = piece.map(|()| Piece::Ok(Frame::data(Bytes::from_static(b"a"))));
    let mut body = Some(StreamBody::new(Box::pin(stream::once(piece))));
    let service = tower::service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(body.take().expect("called once"))))
    });
    let answer = budgeted(budget, ledger, service).call(Request::new(())).now_or_never();
    Box::pin(answer.expect("ready at once").expect("infallible").into_body())
}

#[tokio::test(start_paused = true)]
async fn what_a_body_waits_for_is_the_cause_of_its_pause() {
    let soft = || Budget::new().body_idle(Limit::soft(ms(1_000)));
    let message = |budget: Budget, piece: Pin<Box<dyn Future<Output = ()> + Send>>| async {
        let ledger = Ledger::default();
        drop(made_by(budget, &ledger, piece).collect().await);
        let [message] = <[String; 1]>::try_from(ledger.messages()).expect("one violation");
        let (_, message) = message.split_once(": ").expect("begins with the name");
        message.to_owned()
    };
    let statement = async |text: &str, time| {
        let query = Query::begin(text).await.unwrap();
        sleep(time).await;
        drop(query);
    };
    let late = Box::pin(async move {
        // Most of the pause is not that of the first.
        statement("SELECT 1", ms(500)).await;
        statement("SELECT 2", ms(4_500)).await;
    });
    assert_eq!(
        message(soft(), late).await,
        "5s without a piece of the body, limit 1s: `SELECT 2`, in flight for 4.5s"
    );
    let short = Box::pin(async move {
        sleep(ms(4_500)).await;
        statement("SELECT 1", ms(500)).await;
    });
    let own = "5s without a piece of the body, limit 1s: own code";
    assert_eq!(message(soft(), short).await, own);
    let call = Box::pin(async { drop(pending::<()>().external("prices").await) });
    assert_eq!(
        message(Budget::new().body_idle(ms(3_000)), call).await,
        "3s without a piece of the body, limit 3s: call to \"prices\", in flight for 3s"
    );
}
