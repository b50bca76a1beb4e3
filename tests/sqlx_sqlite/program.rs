//! Random request programs, and what each of them must count.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::future::{BoxFuture, join_all};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use request_budget::db::sqlx::{Connection, Pool};
use request_budget::{Budget, BudgetExt, Cut, Usage};
use sqlx::{Executor, Sqlite, Statement};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::account::{Audit, Tally};
use crate::insistent::insistent;
use crate::is_refusal;
use crate::statement::{Call, How, Sql, Unencodable, any_sql, call, how, sql};

/// One thing that a request does.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Run(Call),
    /// Polls it so many times at most, then drops it.
    Cancel(Call, u8),
    NeverPoll(Call),
    /// An argument that cannot be encoded: nothing is sent.
    BadArgument(How),
    /// Prepares a statement; then executes it, or not.
    Prepare(Option<How>),
    /// A savepoint, where it is inside another one.
    Transaction(End, Vec<Self>),
    /// Polls the beginning of one so many times at most, then drops it.
    CancelBegin(u8),
    Child {
        carried: bool,
        steps: Vec<Self>,
    },
    /// Several steps on one connection. This one and all below only where no connection is held:
    /// who waits for one, or for others who do, must not hold one.
    Connection(Vec<Self>),
    Together(Vec<Call>),
    /// A unit of work inside this one.
    Inner(Vec<Self>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Commit,
    Rollback,
    Drop,
}

/// Runs a program as a unit of work.
pub(crate) async fn run(
    program: &[Step],
    pool: &Pool<Sqlite>,
    budget: Budget,
    audit: &Audit,
) -> Result<(), Cut> {
    run_inside(None, program, pool, budget, audit).await
}

fn run_inside<'a>(
    outer: Option<Arc<Tally>>,
    program: &'a [Step],
    pool: &'a Pool<Sqlite>,
    budget: Budget,
    audit: &'a Audit,
) -> BoxFuture<'a, Result<(), Cut>> {
    let (ledger, tally, span) = audit.open(outer);
    let unit = Unit { pool: pool.clone(), tally, audit: audit.clone(), children: Mutex::default() };
    // Notes what is refused to it.
    let work = insistent(async move { Arc::new(unit).run(program).await });
    Box::pin(work.budgeted("program", budget).with_reporter(ledger).instrument(span))
}

/// What is needed to run the steps of a unit of work.
struct Unit {
    pool: Pool<Sqlite>,
    tally: Arc<Tally>,
    audit: Audit,
    children: Mutex<Vec<JoinHandle<()>>>,
}

enum On<'a> {
    Pool(&'a Pool<Sqlite>),
    Connection(&'a mut Connection<Sqlite>),
}

impl Unit {
    async fn run(self: Arc<Self>, program: &[Step]) {
        self.steps(On::Pool(&self.pool), program).await;
        loop {
            let child = self.children.lock().unwrap().pop();
            let Some(child) = child else { break };
            child.await.expect("children do not panic");
        }
    }

    fn steps<'a>(self: &'a Arc<Self>, mut on: On<'a>, steps: &'a [Step]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for step in steps {
                self.step(&mut on, step).await;
            }
        })
    }

    async fn step<'a>(self: &'a Arc<Self>, on: &mut On<'_>, step: &'a Step) {
        match step {
            Step::Run(call) => self.call(on, call).await,
            Step::Cancel(call, polls) => {
                if at_most(*polls, self.call(on, call)).await.is_none() {
                    self.tally.rows_unseen(call.rows_unseen());
                }
            }
            Step::NeverPoll(call) => match on {
                On::Pool(pool) => call.make_and_drop(*pool),
                On::Connection(connection) => call.make_and_drop(&mut **connection),
            },
            Step::BadArgument(how) => self.bad_argument(on, *how).await,
            Step::Prepare(how) => self.prepare(on, *how).await,
            Step::Transaction(end, steps) => {
                let begun = match on {
                    On::Pool(pool) => pool.begin().await,
                    On::Connection(connection) => connection.begin().await,
                };
                let mut transaction = match begun {
                    Err(error) if is_refusal(&error) => return self.tally.refuse(),
                    begun => begun.unwrap(),
                };
                self.tally.begin();
                self.steps(On::Connection(&mut transaction), steps).await;
                match end {
                    End::Commit => match transaction.commit().await {
                        // What was refused is missing: the rest is not made to last.
                        Ok(()) | Err(sqlx::Error::Configuration(_)) => {}
                        Err(error) => panic!("{error}"),
                    },
                    End::Rollback => transaction.rollback().await.unwrap(),
                    End::Drop => drop(transaction),
                }
            }
            Step::CancelBegin(polls) => match on {
                On::Pool(pool) => {
                    let mut connection = pool.acquire().await.unwrap();
                    self.tally.begin();
                    drop(at_most(*polls, connection.begin()).await);
                }
                On::Connection(connection) => {
                    self.tally.begin();
                    drop(at_most(*polls, connection.begin()).await);
                }
            },
            Step::Child { carried, steps } => self.spawn(*carried, steps.clone()),
            Step::Connection(steps) => {
                let mut connection = self.pool.acquire().await.unwrap();
                self.steps(On::Connection(&mut connection), steps).await;
            }
            Step::Together(calls) => {
                let call = |call: &'a Call| async move { call.run(&self.pool, &self.tally).await };
                join_all(calls.iter().map(call)).await;
            }
            Step::Inner(steps) => {
                let outer = Some(Arc::clone(&self.tally));
                let inner = run_inside(outer, steps, &self.pool, Budget::new(), &self.audit);
                inner.await.expect("an inner unit of work without limits is not cut");
            }
        }
    }

    async fn call(&self, on: &mut On<'_>, call: &Call) {
        match on {
            On::Pool(pool) => call.run(*pool, &self.tally).await,
            On::Connection(connection) => call.run(&mut **connection, &self.tally).await,
        }
    }

    async fn bad_argument(&self, on: &mut On<'_>, how: How) {
        let query = sqlx::query(Sql::Plain.text()).bind(Unencodable);
        let error = match on {
            On::Pool(pool) => how.drive(*pool, query, &self.tally).await,
            On::Connection(connection) => how.drive(&mut **connection, query, &self.tally).await,
        };
        assert!(matches!(error, None | Some(sqlx::Error::Encode(_))), "{error:?}");
    }

    async fn prepare(&self, on: &mut On<'_>, how: Option<How>) {
        let sql = Sql::Rows(0, 3);
        let statement = match on {
            On::Pool(pool) => pool.prepare(sql.text()).await.unwrap(),
            On::Connection(connection) => connection.prepare(sql.text()).await.unwrap(),
        };
        let Some(how) = how else { return };
        let query = statement.query().bind(sql.argument());
        let error = match on {
            On::Pool(pool) => how.drive(*pool, query, &self.tally).await,
            On::Connection(connection) => how.drive(&mut **connection, query, &self.tally).await,
        };
        assert!(error.is_none(), "{error:?}");
    }

    fn spawn(self: &Arc<Self>, carried: bool, steps: Vec<Step>) {
        let child = if carried {
            let unit = Arc::clone(self);
            let work = async move { unit.steps(On::Pool(&unit.pool), &steps).await };
            tokio::spawn(work.in_current_budget().instrument(Span::current()))
        } else {
            let stray = Self {
                pool: self.pool.clone(),
                tally: Arc::default(),
                audit: self.audit.clone(),
                children: Mutex::default(),
            };
            let work = async move {
                assert_eq!(Usage::current(), None);
                Arc::new(stray).run(&steps).await;
            };
            tokio::spawn(work)
        };
        self.children.lock().unwrap().push(child);
    }
}

/// Polls a future so many times at most, then drops it.
async fn at_most<F: Future>(polls: u8, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        let Some(after) = left.checked_sub(1) else { return Poll::Ready(None) };
        left = after;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Programs of all kinds of steps.
pub(crate) fn programs() -> impl Strategy<Value = Vec<Step>> {
    vec(on_pool(), 1..8)
}

/// Programs that do one thing after the other, so that it is known what a limit leaves of them; and
/// no batches, since of these nothing can be refused once the text was sent.
pub(crate) fn plain_programs() -> impl Strategy<Value = Vec<Step>> {
    let run = call(sql()).prop_map(Step::Run);
    let step = run.clone().prop_recursive(3, 16, 4, move |inner| {
        let steps = vec(inner, 0..4);
        prop_oneof![
            3 => run.clone(),
            2 => (end(), steps.clone()).prop_map(|(end, steps)| Step::Transaction(end, steps)),
        ]
    });
    vec(step, 1..8)
}

fn on_pool() -> impl Strategy<Value = Step> {
    let steps = || vec(anywhere(), 0..5);
    let apart = prop_oneof![
        8 => anywhere(),
        1 => steps().prop_map(Step::Connection),
        2 => vec(call(any_sql()), 2..5).prop_map(Step::Together),
    ];
    let inner = vec(apart.clone(), 0..4).prop_map(Step::Inner);
    prop_oneof![8 => apart, 1 => inner]
}

fn anywhere() -> impl Strategy<Value = Step> + Clone {
    let simple = prop_oneof![
        8 => call(any_sql()).prop_map(Step::Run),
        2 => (call(sql()), 0..6_u8).prop_map(|(call, polls)| Step::Cancel(call, polls)),
        1 => call(sql()).prop_map(Step::NeverPoll),
        1 => how().prop_map(Step::BadArgument),
        1 => option::of(how()).prop_map(Step::Prepare),
        1 => (1..4_u8).prop_map(Step::CancelBegin),
    ];
    simple.prop_recursive(3, 12, 4, |inner| {
        let steps = vec(inner, 0..4);
        prop_oneof![
            2 => (end(), steps.clone()).prop_map(|(end, steps)| Step::Transaction(end, steps)),
            1 => (any::<bool>(), steps)
                .prop_map(|(carried, steps)| Step::Child { carried, steps }),
        ]
    })
}

fn end() -> impl Strategy<Value = End> + Clone {
    prop_oneof![Just(End::Commit), Just(End::Rollback), Just(End::Drop)]
}
