//! Calls to external systems.

use std::cell::Cell;
use std::future::{pending, poll_fn, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::join;
use request_budget::report::{Outcome, Report, Reporter};
use request_budget::{Budget, BudgetExt, Cause, ExternalExt, Limit, Resource, Severity, Violation};
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep};

use crate::support::{DropSite, Holding, Ledger, call, handled, ms, panics, pass, poll_once};

fn half_a_second() -> Budget {
    Budget::new().external_timeout(ms(500))
}

#[tokio::test(start_paused = true)]
async fn a_call_is_counted_and_timed_from_its_first_poll_to_its_end() {
    let ledger = Ledger::default();
    let work = async {
        let call = async {
            pass(ms(10));
            advance(ms(20)).await;
            7
        };
        let call = call.external("payments");
        pass(ms(40)); // made, not yet begun
        let answer = call.await;
        pass(ms(80));
        answer
    };
    let work = work.budgeted("order", Budget::new()).with_reporter(ledger.clone());
    assert_eq!(work.await, Ok(Ok(7)));
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (1, ms(30)));
    assert_eq!(usage.total_time, ms(150));
}

#[tokio::test(start_paused = true)]
async fn concurrent_calls_add_up() {
    let ledger = Ledger::default();
    let call = |time| async move { sleep(ms(time)).await }.external("payments");
    let both = async { join(call(100), call(200)).map(drop).await };
    let work = both.budgeted("order", Budget::new());
    work.with_reporter(ledger.clone()).await.unwrap();
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (2, ms(300)));
    assert_eq!(usage.total_time, ms(200));
}

#[tokio::test(start_paused = true)]
async fn each_system_has_its_own_count() {
    type Tallies = Arc<Mutex<Vec<(String, u64, u128)>>>;

    struct Systems(Tallies);

    impl Reporter for Systems {
        fn violation(&self, _: &Violation) {}

        fn finished(&self, report: &Report<'_>) {
            let tally = report.external_calls();
            let mut tally: Vec<_> =
                tally.map(|t| (t.text.to_owned(), t.times, t.time.as_millis())).collect();
            tally.sort();
            *self.0.lock().expect("not poisoned") = tally;
        }
    }

    let tallies = Tallies::default();
    let work = async {
        for (name, time) in [("mail", 5), ("payments", 10), ("payments", 20)] {
            async { pass(ms(time)) }.external(name).await.unwrap();
        }
        // A name may be made up at run time.
        ready(()).external(format!("shard {}", 7)).await.unwrap();
    };
    let work = work.budgeted("order", Budget::new()).with_reporter(Systems(tallies.clone()));
    work.await.unwrap();
    let expected = [("mail", 1, 5), ("payments", 2, 30), ("shard 7", 1, 0)];
    assert_eq!(*tallies.lock().unwrap(), expected.map(|(n, c, t)| (n.to_owned(), c, t)));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_cut_when_its_time_is_up_and_the_work_goes_on() {
    let (ledger, site) = (Ledger::default(), DropSite::default());
    let guard = site.guard();
    let site_after = site.clone();
    let work = async move {
        let cut = Holding(guard, Poll::Pending).external("payments").await.unwrap_err();
        assert_eq!(site_after.inside(), [true], "dropped, and inside the scope");
        cut
    };
    let work = work.budgeted("order", half_a_second()).with_reporter(ledger.clone());
    let mut work = Box::pin(work);
    assert!(poll_once(work.as_mut()).is_pending());
    advance(ms(499)).await;
    assert!(poll_once(work.as_mut()).is_pending());
    assert_eq!(ledger.messages(), [""; 0]);
    advance(ms(1)).await;
    // The timer rings in a task of its own.
    yield_now().await;
    let Poll::Ready(Ok(cut)) = poll_once(work.as_mut()) else { panic!("the work goes on") };

    let message =
        "order: 500ms in one external call, limit 500ms: call to \"payments\", 500ms in all";
    assert_eq!(ledger.messages(), [message]);
    let [violation] = <[_; 1]>::try_from(ledger.violations()).unwrap();
    assert_eq!(violation.severity, Severity::Hard);
    assert_eq!(violation.resource, Resource::ExternalTimeout);
    assert!(
        matches!(&violation.cause, Some(Cause::External { name, calls: 1, .. }) if name == "payments")
    );
    assert_eq!(cut.violation(), &violation);

    let end = ledger.end();
    assert_eq!((end.outcome, end.violations), (Outcome::Ok, 1));
    assert_eq!((end.usage.external_calls, end.usage.external_time), (1, ms(500)));
}

#[tokio::test(start_paused = true)]
async fn the_timer_wakes_a_call() {
    let work = async {
        let started = Instant::now();
        pending::<()>().external("payments").await.unwrap_err();
        started.elapsed()
    };
    assert_eq!(work.budgeted("order", half_a_second()).await, Ok(ms(500)));
}

#[tokio::test(start_paused = true)]
async fn each_call_has_the_whole_timeout_but_is_reported_once() {
    let ledger = Ledger::default();
    let work = async {
        for _ in 0..3 {
            pending::<()>().external("payments").await.unwrap_err();
        }
    };
    work.budgeted("order", half_a_second()).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(ledger.end().usage.external_time, ms(1_500));
    assert_eq!(ledger.messages().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_ready_stands_though_the_clock_has_passed() {
    let ledger = Ledger::default();
    let work = async { async { pass(ms(900)) }.external("payments").await };
    let work = work.budgeted("order", half_a_second()).with_reporter(ledger.clone());
    assert_eq!(work.await, Ok(Ok(())));
    let message =
        "order: 900ms in one external call, limit 500ms: call to \"payments\", 900ms in all";
    assert_eq!(ledger.messages(), [message], "but it is said");
}

#[tokio::test(start_paused = true)]
async fn a_call_gets_no_more_than_is_left_of_the_total_time() {
    let ledger = Ledger::default();
    let budget = half_a_second().total_time(ms(1_000));
    let work = async {
        sleep(ms(700)).await;
        let cut = pending::<()>().external("payments").await.unwrap_err();
        cut.to_string()
    };
    let started = Instant::now();
    let message = work.budgeted("order", budget).with_reporter(ledger.clone()).await;
    assert_eq!(started.elapsed(), ms(1_000));
    let expected = "a call of order was cut: 300ms in one external call, limit 300ms: call to \"payments\", 300ms in all";
    assert_eq!(message.unwrap(), expected, "the work can still answer");
    assert_eq!(ledger.end().usage.external_time, ms(300));
}

#[tokio::test(start_paused = true)]
async fn a_call_gets_no_more_than_its_timeout() {
    let budget = half_a_second().total_time(ms(1_000));
    let work = async {
        sleep(ms(200)).await;
        pending::<()>().external("payments").await.unwrap_err();
    };
    let started = Instant::now();
    work.budgeted("order", budget).await.unwrap();
    assert_eq!(started.elapsed(), ms(700));
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_only_the_total_time_ends_a_call() {
    let ledger = Ledger::default();
    let work = async { pending::<()>().external("payments").await };
    let work = work.budgeted("order", Budget::new().total_time(ms(1_000)));
    let cut = work.with_reporter(ledger.clone()).await.unwrap_err();
    assert_eq!(cut.violation().resource, Resource::TotalTime);
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (1, ms(1_000)));
}

#[tokio::test(start_paused = true)]
async fn outside_every_unit_of_work_a_call_passes_through() {
    let day = async {
        sleep(ms(86_400_000)).await;
        7
    };
    assert_eq!(day.external("payments").await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_call_belongs_to_the_work_that_polls_it_first() {
    let ledger = Ledger::default();
    let made_outside = pending::<()>().external("payments");
    let work = made_outside.budgeted("order", half_a_second()).with_reporter(ledger.clone());
    work.await.unwrap().unwrap_err();
    assert_eq!(ledger.end().usage.external_calls, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_is_counted_with_its_time() {
    let ledger = Ledger::default();
    let work = async {
        let call = tokio::time::timeout(ms(70), pending::<()>().external("payments"));
        assert!(call.await.is_err());
        drop(pending::<()>().external("payments")); // never begun
    };
    work.budgeted("order", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (1, ms(70)));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_with_its_work_is_counted_with_its_time() {
    let ledger = Ledger::default();
    let work = async { pending::<()>().external("payments").await };
    let work = work.budgeted("order", Budget::new()).with_reporter(ledger.clone());
    let mut work = Box::pin(work);
    assert!(poll_once(work.as_mut()).is_pending());
    advance(ms(70)).await;
    drop(work);
    let end = ledger.end();
    assert_eq!((end.usage.external_calls, end.usage.external_time), (1, ms(70)));
    assert_eq!(end.outcome, Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_is_counted_with_its_time() {
    let ledger = Ledger::default();
    let work = async {
        let call = async {
            pass(ms(70));
            panic!("a client that panics")
        };
        call.external("payments").await
    };
    let work = work.budgeted("order", Budget::new()).with_reporter(ledger.clone());
    let mut work = Box::pin(work);
    panics(|| poll_once(work.as_mut()).is_ready());
    drop(work);
    let end = ledger.end();
    assert_eq!((end.usage.external_calls, end.usage.external_time), (1, ms(70)));
    assert_eq!(end.outcome, Outcome::Panicked);
}

#[tokio::test(start_paused = true)]
async fn time_is_charged_once_the_call_is_over_and_not_when_its_future_is_dropped() {
    let ledger = Ledger::default();
    let work = async {
        let mut call = Box::pin(async { pass(ms(10)) }.external("payments"));
        assert!(poll_once(call.as_mut()).is_ready());
        pass(ms(100));
        drop(call);
    };
    work.budgeted("order", Budget::new()).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(ledger.end().usage.external_time, ms(10));
}

#[test]
fn what_a_call_holds_is_dropped_as_soon_as_it_is_over() {
    let site = DropSite::default();
    let guard = site.guard();
    let work = async {
        let mut call = Box::pin(Holding(guard, Poll::Ready(())).external("payments"));
        assert!(poll_once(call.as_mut()).is_ready());
        assert_eq!(site.inside(), [true]);
    };
    assert_eq!(work.budgeted("order", Budget::new()).now_or_never(), Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_call_past_a_hard_limit_is_not_made() {
    let (ledger, polled) = (Ledger::default(), Cell::new(false));
    let work = async {
        call();
        let more = poll_fn(|_| {
            polled.set(true);
            Poll::Ready(())
        });
        more.external("mail").await.unwrap_err().to_string()
    };
    let work = work.budgeted("order", Budget::new().external_calls(Limit::hard(1)));
    let cut = work.with_reporter(ledger.clone()).now_or_never().unwrap().unwrap_err();
    assert_eq!(cut.violation().resource, Resource::ExternalCalls);
    assert!(!polled.get());
    assert_eq!(ledger.end().usage.external_calls, 1);
    assert_eq!(ledger.messages(), ["order: 2 external calls, limit 1"]);
}

#[tokio::test(start_paused = true)]
async fn the_call_that_is_refused_is_told_why() {
    let mut seen = None;
    let work = async {
        let mut call = pin!(ready(()).external("mail"));
        // The work would be cut before it could look again.
        assert!(poll_once(call.as_mut()).is_pending());
        seen = Some(poll_once(call).map(|told| told.map_err(|cut| cut.to_string())));
    };
    let budget = Budget::new().external_calls(Limit::hard(0));
    assert!(work.budgeted("order", budget).now_or_never().unwrap().is_err());
    let refusal = Err("order was cut: 1 external call, limit 0".to_owned());
    assert_eq!(seen, Some(Poll::Ready(refusal)));
}

#[tokio::test(start_paused = true)]
async fn too_many_calls_are_reported_with_the_one_too_many() {
    let ledger = Ledger::default();
    let work = async {
        for name in ["mail", "payments", "payments", "mail"] {
            ready(()).external(name).await.unwrap();
        }
    };
    let work = work.budgeted("order", Budget::new().external_calls(2));
    assert_eq!(work.with_reporter(ledger.clone()).now_or_never(), Some(Ok(())));
    let message = "order: 3 external calls, limit 2: call to \"payments\", 2 times";
    assert_eq!(ledger.messages(), [message]);
}

#[tokio::test(start_paused = true)]
async fn a_soft_timeout_reports_and_does_not_cut() {
    let ledger = Ledger::default();
    let budget = Budget::new().external_timeout(Limit::soft(ms(500)));
    let work = async { sleep(ms(2_000)).external("payments").await };
    let work = work.budgeted("order", budget).with_reporter(ledger.clone());
    assert_eq!(work.await, Ok(Ok(())));
    let message = "order: 2s in one external call, limit 500ms: call to \"payments\", 2s in all";
    assert_eq!(ledger.messages(), [message]);
    assert_eq!(ledger.violations()[0].severity, Severity::Soft);
}

#[tokio::test(start_paused = true)]
async fn a_soft_and_a_hard_timeout_report_once_each() {
    let ledger = Ledger::default();
    let budget = Budget::new().external_timeout(Limit::soft(ms(100)).and_hard(ms(500)));
    let work = async {
        sleep(ms(200)).external("mail").await.unwrap();
        sleep(ms(200)).external("mail").await.unwrap();
        sleep(ms(600)).external("payments").await.unwrap_err();
    };
    work.budgeted("order", budget).with_reporter(ledger.clone()).await.unwrap();
    assert_eq!(
        ledger.messages(),
        [
            "order: 200ms in one external call, limit 100ms: call to \"mail\", 200ms in all",
            "order: 500ms in one external call, limit 500ms: call to \"payments\", 500ms in all",
        ]
    );
    assert_eq!(ledger.end().violations, 1, "one resource");
}

#[tokio::test(start_paused = true)]
async fn too_much_time_in_calls_is_reported() {
    let ledger = Ledger::default();
    let work = async {
        for time in [40, 50, 60] {
            async { pass(ms(time)) }.external("payments").await.unwrap();
        }
    };
    let work = work.budgeted("order", Budget::new().external_time(ms(100)));
    work.with_reporter(ledger.clone()).await.unwrap();
    let message =
        "order: 150ms in external calls, limit 100ms: call to \"payments\", 3 times, 150ms in all";
    assert_eq!(ledger.messages(), [message]);
}

/// Makes a call that never ends in work within work; returns the message of the cut and how long
/// it took.
async fn nested(inner: Budget, outer: Budget, ledger: &Ledger) -> (String, u128) {
    let work = async {
        let started = Instant::now();
        let cut = pending::<()>().external("payments").await.expect_err("it never ends");
        (cut.to_string(), started.elapsed().as_millis())
    };
    let work = work.budgeted("inner", inner).with_reporter(ledger.clone());
    let work = work.budgeted("outer", outer).with_reporter(ledger.clone());
    work.await.expect("goes on").expect("goes on")
}

fn timeout(time: u64) -> Budget {
    Budget::new().external_timeout(ms(time))
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_two_timeouts_holds_and_it_alone_is_reported() {
    let ledger = Ledger::default();
    let (message, took) = nested(timeout(100), timeout(500), &ledger).await;
    assert_eq!(took, 100);
    assert_eq!(
        message,
        "a call of inner was cut: 100ms in one external call, limit 100ms: call to \"payments\", 100ms in all"
    );
    let reported =
        "inner: 100ms in one external call, limit 100ms: call to \"payments\", 100ms in all";
    assert_eq!(ledger.messages(), [reported]);

    let ledger = Ledger::default();
    let (message, took) = nested(timeout(500), timeout(100), &ledger).await;
    assert_eq!(took, 100);
    assert_eq!(
        message,
        "a call of outer was cut: 100ms in one external call, limit 100ms: call to \"payments\", 100ms in all"
    );
    let reported =
        "outer: 100ms in one external call, limit 100ms: call to \"payments\", 100ms in all";
    assert_eq!(ledger.messages(), [reported]);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_the_outer_work_holds_in_the_inner() {
    let ledger = Ledger::default();
    let (_, took) = nested(Budget::new(), timeout(100), &ledger).await;
    assert_eq!(took, 100);
    let reported =
        "outer: 100ms in one external call, limit 100ms: call to \"payments\", 100ms in all";
    assert_eq!(ledger.messages(), [reported]);
    assert_eq!(
        ledger.ends().iter().map(|end| end.usage.external_time).collect::<Vec<_>>(),
        [ms(100); 2]
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_left_of_the_outer_work_holds_in_the_inner() {
    let ledger = Ledger::default();
    let (message, took) = nested(timeout(500), Budget::new().total_time(ms(300)), &ledger).await;
    assert_eq!(took, 300);
    assert_eq!(
        message,
        "a call of inner was cut: 300ms in one external call, limit 300ms: call to \"payments\", 300ms in all"
    );
    assert_eq!(ledger.outcomes(), [Outcome::Ok, Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_a_call_is_two_calls() {
    let ledger = Ledger::default();
    let inner = async { pass(ms(10)) }.external("mail");
    let outer = async { inner.await.unwrap() }.external("gateway");
    let work = outer.budgeted("order", Budget::new()).with_reporter(ledger.clone());
    work.await.unwrap().unwrap();
    let usage = ledger.end().usage;
    assert_eq!((usage.external_calls, usage.external_time), (2, ms(20)));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_zero_lets_through_what_is_ready() {
    let work = async {
        ready(()).external("cache").await.unwrap();
        pending::<()>().external("payments").await.unwrap_err();
    };
    let mut work = Box::pin(work.budgeted("order", Budget::new().external_timeout(ms(0))));
    assert!(poll_once(work.as_mut()).is_pending(), "what is cut at once yields first");
    assert_eq!(poll_once(work.as_mut()), Poll::Ready(Ok(())), "without waiting for a timer");
}

#[tokio::test(start_paused = true)]
async fn a_name_can_have_a_timeout_of_its_own() {
    let ledger = Ledger::default();
    let budget = half_a_second()
        .external_timeout_for("reports", ms(5_000))
        .external_timeout_for("reports", ms(2_000))
        .external_timeout_for("quotes", ms(50));
    let work = async {
        let started = Instant::now();
        assert_eq!(sleep(ms(1_500)).external("reports").await, Ok(()));
        let cut = pending::<()>().external("quotes").await.unwrap_err();
        assert_eq!(started.elapsed(), ms(1_550));
        let message = "a call of order was cut: 50ms in one external call, limit 50ms: call to \"quotes\", 50ms in all";
        assert_eq!(cut.to_string(), message);
        pending::<()>().external("reports").await.unwrap_err();
        assert_eq!(started.elapsed(), ms(3_550));
        pending::<()>().external("payments").await.unwrap_err();
        assert_eq!(started.elapsed(), ms(4_050));
    };
    work.budgeted("order", budget).with_reporter(ledger.clone()).await.unwrap();
    let messages =
        ["order: 50ms in one external call, limit 50ms: call to \"quotes\", 50ms in all"];
    assert_eq!(ledger.messages(), messages, "one a resource");
}

#[tokio::test(start_paused = true)]
async fn without_another_timeout_that_of_a_name_holds_for_it_alone() {
    let budget = Budget::new().external_timeout_for("quotes", ms(50));
    let work = async {
        sleep(ms(60_000)).external("reports").await.unwrap();
        let inner = async { pending::<()>().external("quotes").await.unwrap_err() };
        let cut = inner.budgeted("inner", half_a_second()).await.unwrap();
        assert_eq!(cut.violation().work, "order", "the tighter one is that of the outer work");
    };
    work.budgeted("order", budget).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn work_that_waits_is_cut_by_a_child_that_it_has_spawned() {
    let budget = || Budget::new().external_time(Limit::hard(ms(10)));
    let spawn = || {
        let child = async { sleep(ms(50)).external("payments").await };
        tokio::spawn(child.in_current_budget())
    };
    let started = Instant::now();
    let task = async {
        spawn();
        pending::<()>().await
    };
    let cut = task.budgeted("task", budget()).await.unwrap_err();
    assert_eq!((cut.violation().resource, started.elapsed()), (Resource::ExternalTime, ms(50)));

    let ledger = Ledger::default();
    let request = handled(budget(), &ledger, async move {
        spawn();
        pending().await
    });
    assert_eq!(request.await.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((ledger.outcomes(), started.elapsed()), (vec![Outcome::Cut], ms(100)));
}
