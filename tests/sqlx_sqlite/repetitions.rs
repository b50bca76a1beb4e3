//! A statement with a limit of its own on how often it is executed; the witness tells what SQLite
//! was sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use request_budget::resource::Amount;
use request_budget::{Budget, BudgetExt, Cause, Limit, Resource, Severity, Usage, Violation, db};
use tracing::Instrument;

use crate::witness::Witness;
use crate::{is_refusal, pool, settle};

const TICK: &str = "SELECT $1, 'tick'";
const NAME: &str = "SELECT $1";

type Seen = Arc<Mutex<Vec<Violation>>>;

/// Keeps violations.
fn keep(seen: &Seen) -> impl Fn(&Violation) + Send + Sync + use<> {
    let seen = Arc::clone(seen);
    move |violation| seen.lock().unwrap().push(violation.clone())
}

/// What was crossed, at which limit, and by which statement.
fn crossing(violation: &Violation) -> (Severity, Amount, Amount, &str) {
    assert_eq!(violation.resource, Resource::RepeatedQueries);
    let Some(Cause::Statement { text, .. }) = &violation.cause else { panic!("no statement") };
    (violation.severity, violation.limit, violation.observed, text)
}

#[tokio::test]
async fn a_soft_limit_of_its_own_holds_for_one_statement_and_for_no_other() {
    let pool = pool().await;
    let run = async |budget: Budget, ticks: u64, names: u64| {
        let seen = Seen::default();
        let work = async {
            for (text, times) in [(TICK, ticks), (NAME, names)] {
                for n in 0..times {
                    sqlx::query(text).bind(n as i64).execute(&pool).await.unwrap();
                }
            }
            Usage::current().unwrap()
        };
        let usage = work.budgeted("test", budget).with_reporter(keep(&seen)).await.unwrap();
        assert_eq!((usage.queries, usage.repeated_queries), (ticks + names, ticks.max(names)));
        std::mem::take(&mut *seen.lock().unwrap())
    };
    let budget = Budget::new().repeated_queries(2).repeated_queries_for(TICK, 5);
    assert_eq!(run(budget.clone(), 5, 2).await, []);
    let seen = run(budget.clone(), 6, 2).await;
    let tick = (Severity::Soft, Amount::Count(5), Amount::Count(6), TICK);
    assert_eq!(seen.iter().map(crossing).collect::<Vec<_>>(), [tick]);
    let said = format!("test: 6 executions of the same statement, limit 5: `{TICK}`, 6 times");
    assert!(seen[0].to_string().starts_with(&said), "{}", seen[0]);
    let seen = run(budget, 5, 3).await;
    let name = (Severity::Soft, Amount::Count(2), Amount::Count(3), NAME);
    assert_eq!(seen.iter().map(crossing).collect::<Vec<_>>(), [name]);
    // Without a limit on all others; and without any.
    let seen = run(Budget::new().repeated_queries_for(TICK, 1), 2, 9).await;
    let tick = (Severity::Soft, Amount::Count(1), Amount::Count(2), TICK);
    assert_eq!(seen.iter().map(crossing).collect::<Vec<_>>(), [tick]);
    let any = Budget::new().repeated_queries(Limit::hard(2)).repeated_queries_for(TICK, u64::MAX);
    assert_eq!(run(any, 100, 2).await, []);
}

#[tokio::test]
async fn a_hard_limit_of_its_own_refuses_one_statement_and_no_other() {
    let pool = pool().await;
    let own = |most| Budget::new().repeated_queries_for(TICK, Limit::hard(most));
    let execute = async |text: &'static str, times: usize| {
        for _ in 0..times {
            sqlx::query(text).bind(1).execute(&pool).await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    // In a budget of its own, and in one around another that allows it.
    for inner in [Budget::new(), own(100), Budget::new().repeated_queries(Limit::hard(8))] {
        let witness = Witness::new();
        let work = async {
            execute(NAME, 7).await.unwrap();
            execute(TICK, 3).await.unwrap();
            assert!(execute(TICK, 1).await.is_err_and(|error| is_refusal(&error)));
        };
        let outer = work.budgeted("inner", inner).budgeted("outer", own(3));
        let cut = outer.instrument(witness.span()).await.unwrap_err();
        let expected = (Severity::Hard, Amount::Count(3), Amount::Count(4), TICK);
        assert_eq!(crossing(cut.violation()), expected);
        assert_eq!(cut.violation().work, "outer");
        settle(&pool).await;
        assert_eq!((witness.texts()[TICK], witness.texts()[NAME]), (3, 7));
    }
    // A lower one than that of all others, and a higher one.
    for (most, of_others) in [(1, 4), (4, 1)] {
        let budget = own(most).repeated_queries(Limit::hard(of_others));
        let work = async {
            execute(TICK, most as usize).await.unwrap();
            execute(NAME, of_others as usize).await.unwrap();
            execute(NAME, 1).await.unwrap_err();
        };
        let cut = work.budgeted("test", budget).await.unwrap_err();
        let of_others = Amount::Count(of_others);
        let expected = (Severity::Hard, of_others, cut.violation().observed, NAME);
        assert_eq!(crossing(cut.violation()), expected);
    }
}

#[tokio::test]
async fn a_statement_that_is_observed_has_its_own_limit_as_well() {
    let seen = Seen::default();
    let budget = Budget::new().repeated_queries(1).repeated_queries_for(TICK, 3);
    let work = async {
        for text in [TICK, TICK, TICK, NAME, TICK] {
            db::executed(text, Duration::ZERO, 0);
        }
    };
    work.budgeted("test", budget).with_reporter(keep(&seen)).await.unwrap();
    let seen = seen.lock().unwrap();
    let tick = (Severity::Soft, Amount::Count(3), Amount::Count(4), TICK);
    assert_eq!(seen.iter().map(crossing).collect::<Vec<_>>(), [tick]);
}
