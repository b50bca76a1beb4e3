//! diesel-async on SQLite, which executes on threads for blocking work.

use std::error::Error;

use diesel::SqliteConnection;
use diesel_async::sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use request_budget::db::Query;
use request_budget::{Budget, BudgetExt, Usage};

use crate::{Test, runtime};

pub(crate) const TESTS: &[Test] = &[
    ("counts_what_diesel_async_executes_on_sqlite", counts),
    ("what_diesel_async_does_not_carry_is_unattributed", is_unattributed),
];

/// As in the documentation of `request_budget::diesel`.
struct Carrying;

impl SpawnBlocking for Carrying {
    fn spawn_blocking<'a, R: Send + 'static>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync>>> {
        let task = request_budget::task::spawn_blocking(task);
        async { task.await.map_err(Into::into) }.boxed()
    }

    fn get_runtime() -> Self {
        Self
    }
}

fn counts() {
    runtime(2).block_on(async {
        let request = |n: u64| {
            let work = async move {
                let opened =
                    SyncConnectionWrapper::<SqliteConnection, Carrying>::establish(":memory:");
                let mut connection = opened.await.expect("opens");
                let table = "CREATE TABLE items (id integer)";
                connection.batch_execute(table).await.expect("executes");
                let ended = connection.transaction(async |connection| {
                    for id in 0..n {
                        let insert = diesel::sql_query("INSERT INTO items VALUES (?)");
                        let insert = insert.bind::<diesel::sql_types::BigInt, _>(id as i64);
                        insert.execute(connection).await?;
                    }
                    diesel::QueryResult::Ok(())
                });
                ended.await.expect("commits");
                let usage = Usage::current().expect("inside");
                assert_eq!((usage.queries, usage.repeated_queries), (n + 1, n.max(1)));
                assert_eq!((usage.writes, usage.transactions), (n + 1, 1));
            };
            tokio::spawn(work.budgeted("request", Budget::new()))
        };
        for request in join_all((0..50).map(|n| request(n % 7))).await {
            request.expect("no panic").expect("no limit");
        }
    });
}

fn is_unattributed() {
    runtime(0).block_on(async {
        let before = Query::unattributed();
        let work = async {
            let opened = SyncConnectionWrapper::<SqliteConnection>::establish(":memory:");
            let mut connection = opened.await.expect("opens");
            diesel::sql_query("SELECT 1").execute(&mut connection).await.expect("executes");
            Usage::current().expect("inside").queries
        };
        assert_eq!(work.budgeted("request", Budget::new()).await, Ok(0));
        assert!(Query::unattributed() > before);
    });
}
