//! What the total time does, and hard limits on the rest, before the headers and in the body.

use std::convert::Infallible;
use std::future::{pending, poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use request_budget::report::Outcome;
use request_budget::{
    Budget, BudgetExt, BudgetLayer, ExternalExt, Limit, Resource, Severity, Violation,
};
use tokio::task::coop::poll_proceed;
use tokio::task::yield_now;
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt};

use crate::support::{
    CallOnDrop, DropSite, Given, Holding, Ledger, Script, Step, answer, body, budgeted, call, data,
    handled, ms, next, pass, poll_once,
};
use Step::{Data, Pass, Refused, Trailers, Wait};

fn a_second() -> Budget {
    Budget::new().total_time(ms(1_000))
}

#[tokio::test(start_paused = true)]
async fn a_request_is_cut_before_its_headers() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let guard = site.guard();
    let mut future = handled(a_second(), &ledger, async {
        pending::<()>().await;
        drop(guard);
        Script::new([])
    });
    assert!(poll_once(future.as_mut()).is_pending());
    advance(ms(999)).await;
    assert!(poll_once(future.as_mut()).is_pending());
    assert_eq!((ledger.outcomes(), site.inside()), (vec![], vec![]));

    advance(ms(1)).await;
    // The timer rings in a task of its own.
    yield_now().await;
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("the time is up") };
    assert_eq!(ledger.outcomes(), [Outcome::Cut], "reported with the headers");
    assert_eq!(ledger.messages(), ["GET (no route): 1s in total, limit 1s: own code"]);
    assert_eq!(ledger.violations()[0].severity, Severity::Hard);
    assert_eq!(site.inside(), [true], "the handler is dropped inside its scope");

    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
    let mut body = answer.into_body();
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(20));
    assert_eq!(next(&mut body), data("service unavailable\n"));
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert_eq!(next(&mut body), Given::End);
    drop((body, future));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn the_timer_wakes_the_request() {
    let (ledger, started) = (Ledger::default(), Instant::now());
    // Nothing else will ever wake it, and the clock jumps to the next timer.
    let answer = handled(a_second(), &ledger, pending()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), ms(1_000));
}

#[tokio::test(start_paused = true)]
async fn the_timer_wakes_the_body() {
    let (ledger, started) = (Ledger::default(), Instant::now());
    let body = body(a_second(), &ledger, Script::new([Data("a"), Wait, Wait]));
    let error = body.collect().await.unwrap_err();
    assert_eq!(error.to_string(), "GET (no route) was cut: 1s in total, limit 1s: own code");
    assert_eq!(started.elapsed(), ms(1_000));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_cut_in_its_body() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let script = Script::new([Data("a"), Wait, Wait, Data("b")]).of_length(2).dropped_at(&site);
    let mut body = body(a_second(), &ledger, script);
    assert_eq!(next(&mut body), data("a"));
    assert_eq!(next(&mut body), Given::Nothing);
    advance(ms(1_000)).await;
    let cut = "GET (no route) was cut: 1s in total, limit 1s: own code".to_owned();
    assert_eq!(next(&mut body), Given::Cut(cut));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    assert_eq!(ledger.messages(), ["GET (no route): 1s in total, limit 1s: own code"]);
    assert_eq!(site.inside(), [true]);

    assert!(body.is_end_stream());
    assert_eq!(next(&mut body), Given::End);
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_headers_and_of_the_body_is_one() {
    let ledger = Ledger::default();
    let mut future = handled(a_second(), &ledger, async {
        pass(ms(600));
        Script::new([Pass(ms(399)), Data("a"), Pass(ms(1)), Data("b"), Data("c")])
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    let mut body = answer.into_body();
    assert_eq!(next(&mut body), data("a"));
    assert!(matches!(next(&mut body), Given::Cut(_)));
    assert_eq!(ledger.end().usage.total_time, ms(1_000));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_ready_stands_though_the_clock_has_passed() {
    let ledger = Ledger::default();
    let mut future = handled(a_second(), &ledger, async {
        pass(ms(5_000));
        Script::new([Data("late")]).telling_its_end()
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(next(&mut answer.into_body()), data("late"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(
        ledger.messages(),
        ["GET (no route): 5s in total, limit 1s: own code"],
        "but it is said"
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_stands_though_the_clock_has_passed() {
    let late = |steps: &[Step]| {
        let wait = [Pass(ms(5_000))];
        Script::new(wait.iter().chain(steps).copied())
    };
    for (script, given, outcome) in [
        (late(&[]), Given::End, Outcome::Ok),
        (late(&[Trailers]), Given::Trailers, Outcome::Ok),
        (late(&[Data("a")]).telling_its_end(), data("a"), Outcome::Ok),
        (late(&[Step::Fail]), Given::Failed("the file is gone".to_owned()), Outcome::Error),
    ] {
        let ledger = Ledger::default();
        assert_eq!(next(&mut body(a_second(), &ledger, script)), given);
        assert_eq!(ledger.outcomes(), [outcome]);
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_a_body_stands_though_trailers_may_follow() {
    let ledger = Ledger::default();
    let script = Script::new([Pass(ms(5_000)), Data("abc")]).of_length(3);
    let mut body = body(a_second(), &ledger, script);
    assert_eq!(next(&mut body), data("abc"));
    drop(body);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn an_endless_stream_that_is_always_ready_is_cut() {
    let ledger = Ledger::default();
    let script = Script::new([Pass(ms(300)), Data("a")].repeat(1_000));
    let mut body = body(a_second(), &ledger, script);
    assert_eq!([next(&mut body), next(&mut body), next(&mut body)], ["a", "a", "a"].map(data));
    assert!(matches!(next(&mut body), Given::Cut(_)));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn work_that_is_always_busy_does_not_starve_its_timer() {
    let mut polls = 0;
    // Uses up the cooperative budget of the task in each poll, as a long loop over channels does.
    let busy = poll_fn(move |cx| {
        polls += 1;
        assert!(polls < 1_000, "starved");
        pass(ms(100));
        while let Poll::Ready(progress) = poll_proceed(cx) {
            progress.made_progress();
        }
        Poll::<Script>::Pending
    });
    let ledger = Ledger::default();
    let answer = tokio::spawn(handled(a_second(), &ledger, busy)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_total_time_of_zero_lets_through_what_is_ready() {
    let none = || Budget::new().total_time(Duration::ZERO);
    let ledger = Ledger::default();
    let mut future = handled(none(), &ledger, pending());
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("cut in the first poll") };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ledger.messages(), ["GET (no route): 0ns in total, limit 0ns: own code"]);

    let ledger = Ledger::default();
    let mut whole = body(none(), &ledger, Script::new([Data("a")]).telling_its_end());
    assert_eq!(next(&mut whole), data("a"));
    let mut waiting = body(none(), &ledger, Script::new([Wait]));
    assert!(matches!(next(&mut waiting), Given::Cut(_)));
    assert_eq!(ledger.outcomes(), [Outcome::Ok, Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn a_soft_total_time_only_reports() {
    let ledger = Ledger::default();
    let budget = Budget::new().total_time(Limit::soft(ms(1_000)));
    let mut body =
        body(budget, &ledger, Script::new([Data("a"), Pass(ms(2_000)), Data("b"), Wait]));
    assert_eq!(
        [next(&mut body), next(&mut body), next(&mut body)],
        [data("a"), data("b"), Given::Nothing]
    );
    assert_eq!(next(&mut body), Given::End);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.messages(), ["GET (no route): 2s in total, limit 1s: own code"]);
    assert_eq!(ledger.violations()[0].severity, Severity::Soft);
}

#[tokio::test(start_paused = true)]
async fn a_cut_says_all_that_the_soft_limit_would() {
    let ledger = Ledger::default();
    let budget = Budget::new().total_time(Limit::soft(ms(500)).and_hard(ms(1_000)));
    handled(budget, &ledger, pending()).await;
    assert_eq!(ledger.messages(), ["GET (no route): 1s in total, limit 1s: own code"]);
    assert_eq!(ledger.end().violations, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_is_reported_when_it_ends() {
    let ledger = Ledger::default();
    let budget = || Budget::new().slow_request(ms(100));
    let script = |time| Script::new([Pass(ms(time)), Data("a"), Data("b")]).telling_its_end();
    let mut slow = body(budget(), &ledger, script(101));
    assert_eq!(next(&mut slow), data("a"));
    assert_eq!(ledger.messages(), [""; 0]);
    assert_eq!(next(&mut slow), data("b"));
    assert_eq!(ledger.messages(), ["GET (no route): 101ms in total, limit 100ms: own code"]);
    assert_eq!(ledger.violations()[0].resource, Resource::SlowRequest);

    let ledger = Ledger::default();
    let mut quick = body(budget(), &ledger, script(100));
    assert_eq!([next(&mut quick), next(&mut quick)], [data("a"), data("b")]);
    assert_eq!((ledger.outcomes(), ledger.messages()), (vec![Outcome::Ok], vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_user_chooses_the_answer() {
    let reject = |violation: &Violation| {
        let mut answer = Response::new(Bytes::from(format!("over its {}", violation.resource)));
        *answer.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        answer.headers_mut().insert("retry-after", http::HeaderValue::from_static("1"));
        answer
    };
    let service =
        tower::service_fn(|_: Request<()>| pending::<Result<Response<Script>, Infallible>>());
    let layer = BudgetLayer::new(a_second()).with_reject(reject);
    let answer = layer.layer(service).oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(answer.headers().len(), 1);
    assert_eq!(answer.body().size_hint().exact(), Some(19));
    let mut body = Box::pin(answer.into_body());
    assert_eq!(next(&mut body), data("over its total_time"));
    assert_eq!(next(&mut body), Given::End);

    let empty =
        BudgetLayer::new(a_second()).with_reject(|_: &Violation| Response::new(Bytes::new()));
    let answer = empty.layer(service).oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.body().is_end_stream());
    assert_eq!(answer.body().size_hint().exact(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn in_place_of_an_answer_that_panics_is_the_usual_one() {
    let ledger = Ledger::default();
    let service =
        tower::service_fn(|_: Request<()>| pending::<Result<Response<Script>, Infallible>>());
    let mut service = BudgetLayer::new(Budget::new().total_time(Duration::ZERO))
        .with_reporter(ledger.clone())
        .with_reject(|_: &Violation| panic!("an answer that panics"))
        .layer(service);
    let mut future = Box::pin(service.call(Request::new(())));
    let Poll::Ready(Ok(answer)) = poll_once(future.as_mut()) else { panic!("not answered") };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_made_without_what_was_refused_is_thrown_away() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let budget = Budget::new().external_calls(Limit::hard(1));
    let script = Script::new([Data("half of the truth")]).dropped_at(&site);
    let mut future = handled(budget, &ledger, async move {
        call();
        assert!(ready(()).external("payments").await.is_err());
        script
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    let message = "GET (no route): 2 external calls, limit 1: call to \"payments\"";
    assert_eq!(ledger.messages(), [message]);
    assert_eq!(site.inside(), [true], "the answer belongs to the work");
}

#[test]
fn what_a_task_made_without_what_was_refused_is_thrown_away() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let guard = site.guard();
    let work = async {
        ready(()).external("payments").await.unwrap_err();
        guard
    };
    let work = work.budgeted("task", Budget::new().external_calls(Limit::hard(0)));
    let cut = work.with_reporter(ledger.clone()).now_or_never().unwrap().unwrap_err();
    let message = "task was cut: 1 external call, limit 0";
    assert_eq!(cut.to_string(), message);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
    assert_eq!(site.inside(), [true], "what it made belongs to the work");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_made_with_all_it_asked_for_stands() {
    let ledger = Ledger::default();
    let budget = Budget::new().external_time(Limit::hard(ms(10)));
    let mut future = handled(budget.clone(), &ledger, async {
        async { pass(ms(50)) }.external("payments").await.unwrap();
        Script::new([Data("a")]).telling_its_end()
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(next(&mut answer.into_body()), data("a"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.end().violations, 1);

    let task = async { async { pass(ms(50)) }.external("payments").await };
    assert_eq!(task.budgeted("task", budget).await, Ok(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn work_past_a_hard_limit_is_cut_when_it_next_waits() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let budget = Budget::new().external_time(Limit::hard(ms(10)));
    let guard = site.guard();
    let mut future = handled(budget.clone(), &ledger, async move {
        let _guard = guard;
        async { pass(ms(50)) }.external("payments").await.unwrap();
        pending().await
    });
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("cut") };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(site.inside(), [true]);
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);

    let task = async {
        async { pass(ms(50)) }.external("payments").await.unwrap();
        pending::<()>().await
    };
    let cut = task.budgeted("task", budget).now_or_never().unwrap().unwrap_err();
    assert_eq!(cut.violation().resource, Resource::ExternalTime);
}

#[test]
fn a_body_past_a_hard_limit_is_cut_unless_it_is_at_its_end() {
    let ten = || Budget::new().response_bytes(Limit::hard(10));
    let ledger = Ledger::default();
    let script = Script::new([Data("0123456789"), Data("more"), Data("end")]);
    let mut long = body(ten(), &ledger, script);
    assert_eq!(next(&mut long), data("0123456789"));
    let cut = "GET (no route) was cut: 14 B of response body, limit 10 B".to_owned();
    assert_eq!(next(&mut long), Given::Cut(cut));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);

    let ledger = Ledger::default();
    let whole = Script::new([Data("01234567890")]).telling_its_end();
    assert_eq!(next(&mut body(ten(), &ledger, whole)), data("01234567890"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
    assert_eq!(ledger.end().violations, 1, "said all the same");
}

#[test]
fn a_body_that_waits_past_a_hard_limit_is_cut() {
    let ledger = Ledger::default();
    let budget = Budget::new().external_calls(Limit::hard(0));
    let mut body = body(budget, &ledger, Script::new([Refused, Wait]));
    assert!(matches!(next(&mut body), Given::Cut(_)));
    assert_eq!(ledger.outcomes(), [Outcome::Cut]);
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_may_not_go_on_in_its_destructors() {
    let ledger = Ledger::default();
    let work = Holding(CallOnDrop, Poll::Pending).budgeted("task", a_second());
    work.with_reporter(ledger.clone()).await.unwrap_err();
    assert_eq!(ledger.calls(), [("task".to_owned(), 0)], "refused");
}

#[test]
fn without_a_runtime_the_clock_is_looked_at_on_each_poll() {
    let ledger = Ledger::default();
    let hour = Budget::new().total_time(Duration::from_secs(3_600));
    let mut future = handled(hour.clone(), &ledger, pending());
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(poll_once(future.as_mut()).is_pending());
    let mut body = body(hour, &ledger, Script::new([Wait, Wait, Data("a")]));
    assert_eq!(
        [next(&mut body), next(&mut body), next(&mut body)],
        [Given::Nothing, Given::Nothing, data("a")]
    );
    drop((future, body));
    assert_eq!(ledger.outcomes(), [Outcome::Cancelled, Outcome::Cancelled]);

    let now = Budget::new().total_time(Duration::ZERO);
    let answer = poll_once(handled(now, &ledger, pending()).as_mut());
    let answer = answer.map(|answer| answer.status());
    assert_eq!(answer, Poll::Ready(StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test(start_paused = true)]
async fn a_limit_longer_than_the_clock_is_no_limit() {
    let ledger = Ledger::default();
    let mut future = handled(Budget::new().total_time(Duration::MAX), &ledger, pending());
    assert!(poll_once(future.as_mut()).is_pending());
    advance(Duration::from_secs(1_000_000)).await;
    assert!(poll_once(future.as_mut()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_may_come_late_too() {
    let ledger = Ledger::default();
    let late = answer(a_second(), &ledger, Method::HEAD, StatusCode::OK, Script::new([]));
    advance(ms(5_000)).await;
    drop(late);
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn the_service_of_a_cut_request_serves_the_next() {
    let ledger = Ledger::default();
    let mut slow = true;
    let service = tower::service_fn(move |_: Request<()>| {
        let slow = std::mem::take(&mut slow);
        async move {
            if slow {
                pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Script::new([]).telling_its_end()))
        }
    });
    let mut service = budgeted(a_second(), &ledger, service);
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
        let answer = service.ready().await.unwrap().call(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), status);
    }
    assert_eq!(ledger.outcomes(), [Outcome::Cut, Outcome::Ok]);
}

#[test]
fn a_runtime_without_timers_is_as_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let hour = Budget::new().total_time(Duration::from_secs(3_600));
        let mut future = handled(hour, &Ledger::default(), pending());
        assert!(poll_once(future.as_mut()).is_pending());
    });
}

#[test]
fn without_a_runtime_nothing_panics_not_even_caught() {
    // A caught panic prints all the same, and ends a program that aborts on panics.
    let panicked = Arc::new(AtomicBool::new(false));
    let (forward, here) = (std::panic::take_hook(), thread::current().id());
    std::panic::set_hook(Box::new({
        let panicked = panicked.clone();
        move |panic| {
            panicked.fetch_or(thread::current().id() == here, Relaxed);
            forward(panic);
        }
    }));
    let hour = Budget::new().total_time(Duration::from_secs(3_600));
    let mut future = handled(hour, &Ledger::default(), pending());
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(!panicked.load(Relaxed));
}

/// Is ready at its second poll.
async fn late() {
    yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_when_the_timer_rings_stands() {
    let ledger = Ledger::default();
    let mut future = handled(a_second(), &ledger, async {
        late().await;
        Script::new([Wait, Data("late")]).telling_its_end()
    });
    assert!(poll_once(future.as_mut()).is_pending());
    advance(ms(1_000)).await;
    let Poll::Ready(answer) = poll_once(future.as_mut()) else { panic!("ready") };
    assert_eq!(answer.status(), StatusCode::OK);

    let script = Script::new([Wait, Data("late")]).telling_its_end();
    let mut body = body(a_second(), &ledger, script);
    assert_eq!(next(&mut body), Given::Nothing);
    advance(ms(1_000)).await;
    assert_eq!(next(&mut body), data("late"));
    assert_eq!(ledger.outcomes(), [Outcome::Ok]);

    let mut task = Box::pin(late().budgeted("task", a_second()));
    assert!(poll_once(task.as_mut()).is_pending());
    advance(ms(1_000)).await;
    assert_eq!(poll_once(task.as_mut()), Poll::Ready(Ok(())));

    let call = late().external("payments");
    let call = call.budgeted("task", Budget::new().external_timeout(ms(1_000)));
    let mut call = Box::pin(call);
    assert!(poll_once(call.as_mut()).is_pending());
    advance(ms(1_000)).await;
    assert_eq!(poll_once(call.as_mut()), Poll::Ready(Ok(Ok(()))));
}
