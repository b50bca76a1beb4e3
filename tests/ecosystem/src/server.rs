//! How many statements the servers have executed, by their own statistics.

use std::sync::{Mutex, PoisonError};

use sqlx::{MySqlPool, PgPool};

/// The address of a database of its own, made anew.
pub(crate) async fn postgres_database(url: &str, name: &str) -> (String, PgPool) {
    let admin = PgPool::connect(url).await.expect("the server is there");
    sqlx::query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").execute(&admin).await.ok();
    for statement in ["DROP DATABASE IF EXISTS", "CREATE DATABASE"] {
        let statement = format!("{statement} {name}");
        sqlx::query(&statement).execute(&admin).await.expect("makes a database");
    }
    (with_database(url, name), admin)
}

/// How many statements on our table PostgreSQL has executed in this database.
pub(crate) async fn executed_by_postgres(admin: &PgPool, name: &str) -> u64 {
    let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements AS seen
        JOIN pg_database ON pg_database.oid = seen.dbid
        WHERE datname = $1 AND query LIKE '%budget_items%' AND query NOT LIKE 'DELETE%'";
    let calls = sqlx::query_scalar::<_, i64>(calls).bind(name).fetch_one(admin).await;
    calls.expect("counts").cast_unsigned()
}

pub(crate) async fn mariadb_database(url: &str, name: &str) -> (String, MySqlPool) {
    let admin = MySqlPool::connect(url).await.expect("the server is there");
    for statement in ["DROP DATABASE IF EXISTS", "CREATE DATABASE"] {
        let statement = format!("{statement} {name}");
        sqlx::raw_sql(&statement).execute(&admin).await.expect("makes a database");
    }
    for statement in ["SET GLOBAL log_output = 'TABLE'", "SET GLOBAL general_log = 'ON'"] {
        sqlx::raw_sql(statement).execute(&admin).await.expect("the user may log");
    }
    (with_database(url, name), admin)
}

/// Runs a test that reads MariaDB's log, which is one table for all and grows with all.
pub(crate) fn alone_with_the_log(test: impl FnOnce()) {
    static LOG: Mutex<()> = Mutex::new(());
    let _alone = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    test();
}

pub(crate) async fn empty_the_log(admin: &MySqlPool) {
    let truncate = sqlx::raw_sql("TRUNCATE mysql.general_log").execute(admin).await;
    truncate.expect("empties the log");
}

/// How many statements on our table these connections have sent for execution.
pub(crate) async fn logged_by_mariadb(admin: &MySqlPool, connections: &[u64]) -> u64 {
    let ids: Vec<_> = connections.iter().map(u64::to_string).collect();
    let count = format!(
        "SELECT count(*) FROM mysql.general_log WHERE thread_id IN ({})
         AND command_type IN ('Execute', 'Query') AND argument LIKE '%budget\\_items%'
         AND argument NOT LIKE 'DELETE%'",
        ids.join(", ")
    );
    let count = sqlx::query_scalar::<_, i64>(&count).fetch_one(admin).await;
    count.expect("counts").cast_unsigned()
}

/// The same server, with another database.
fn with_database(url: &str, name: &str) -> String {
    let mut url: url::Url = url.parse().expect("an address");
    url.set_path(name);
    url.into()
}
