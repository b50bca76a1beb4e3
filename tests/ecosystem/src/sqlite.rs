//! Plain pools of SQLite, observed against SQLite's own table of its statements.

use futures_util::future::join_all;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tracing::{Instrument, info_span};

use crate::check::{check, fifty, usage_of};
use crate::plain::{ALL, CONNECTIONS, Dialect};
use crate::suite::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.without_server(&[
        ("sqlx_0_8_is_what_sqlite_runs_on_one_thread", || on_sqlite(0)),
        ("sqlx_0_8_is_what_sqlite_runs_on_two_threads", || on_sqlite(2)),
        ("sqlx_0_8_is_told_apart_among_fifty_requests_on_sqlite", fifty_at_once),
        ("sqlx_0_8_in_spans_of_the_user_is_counted_on_sqlite", in_spans),
    ]);
}

const SQLITE: Dialect = Dialect {
    create: "CREATE TABLE budget_items (id INTEGER PRIMARY KEY, hits INTEGER NOT NULL DEFAULT 0)",
    insert: "INSERT INTO budget_items (id) VALUES ($1)",
    one: "SELECT id FROM budget_items WHERE id = $1",
    failed_execution_is_seen_as: 1,
    batch_is_seen_as: 0,
    reads_ahead: true,
};

pub(crate) mod programs {
    use super::SQLITE;
    use crate::plain::programs_on;

    programs_on!(sqlx, Sqlite, SQLITE);
}

/// A pool of connections that each have a database in memory, with a table of twenty rows.
pub(crate) async fn pool() -> SqlitePool {
    let options = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(CONNECTIONS)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| {
            Box::pin(async {
                programs::make_table(connection).await;
                Ok(())
            })
        });
    options.connect_with(SqliteConnectOptions::new()).await.expect("opens")
}

/// How often the statements on our table have run, on all connections, by SQLite's table of the
/// statements that it keeps prepared. A batch is not kept.
pub(crate) async fn executed(pool: &SqlitePool) -> u64 {
    const RUNS: &str = "SELECT coalesce(sum(run), 0) FROM sqlite_stmt WHERE sql LIKE \
                        '%budget_items%' AND sql NOT LIKE '%hits = 1%' AND trim(sql) <> 'SELECT \
                        count(*) FROM budget_items' AND sql NOT LIKE '%sqlite_stmt%'";
    let mut runs = 0;
    for connection in join_all((0..CONNECTIONS).map(|_| pool.acquire())).await {
        let mut connection = connection.expect("acquires");
        let one = sqlx::query_scalar::<_, i64>(RUNS).fetch_one(&mut *connection).await;
        runs += one.expect("built as .cargo/config.toml says").cast_unsigned();
    }
    runs
}

fn on_sqlite(workers: usize) {
    let runtime = runtime(workers);
    let pool = runtime.block_on(pool());
    let executed = async || executed(&pool).await;
    check(500, |program| runtime.block_on(programs::equal_the_database(&pool, &program, executed)));
}

fn fifty_at_once() {
    with_runtime(2, async {
        let pool = pool().await;
        let before = executed(&pool).await;
        let all = fifty(|| {
            let pool = pool.clone();
            async move {
                let all = sqlx::query(ALL).fetch_all(&pool).await.expect("fetches").len();
                // Until every connection has reported what it has executed.
                programs::settle(&pool).await;
                all
            }
        });
        assert_eq!(all.await, executed(&pool).await - before);
    });
}

fn in_spans() {
    with_runtime(2, async {
        let pool = pool().await;
        let work = async {
            for _ in 0..50 {
                let select = async { sqlx::query(ALL).fetch_all(&pool).await.expect("fetches") };
                assert_eq!(select.instrument(info_span!("repository")).await.len(), 20);
            }
            programs::settle(&pool).await;
        };
        let usage = usage_of(work.instrument(info_span!("request"))).await;
        assert_eq!((usage.queries, usage.rows), (50, 1_000), "{usage:?}");
    });
}
