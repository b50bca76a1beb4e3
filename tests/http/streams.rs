//! Bodies that are meant to last: their budget ends with the headers, or bounds their pauses.

use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt;
use request_budget::report::Outcome;
use request_budget::{Budget, Limit};
use tokio::time::{Instant, advance};

use crate::support::{Given, Ledger, Script, Step, body, data, handled, ms, next, pass, poll_once};
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
    let answer = handled(events(), &ledger, std::future::pending()).await;
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
    assert_eq!(ledger.messages(), ["GET (no route): 5s without a piece of the body, limit 1s"]);
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
