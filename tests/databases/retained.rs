//! What a driver, and the pool, do for themselves is no memory of the work.

use std::sync::{Arc, Mutex};

use request_budget::report::{Climb, Growth, Report, Reporter};
use request_budget::sqlx::Pool;
use request_budget::{Budget, BudgetExt, Violation};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;

use crate::{Suite, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.with_server(
        "REQUEST_BUDGET_POSTGRES_URL",
        &[("retained_is_nothing_on_postgres", |url| with_runtime(0, postgres(url)))],
    );
    suite.with_server(
        "REQUEST_BUDGET_MYSQL_URL",
        &[("retained_is_nothing_on_mariadb", |url| with_runtime(0, mariadb(url)))],
    );
}

#[derive(Clone, Default)]
struct Retained(Arc<Mutex<Vec<u64>>>);

impl Reporter for Retained {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let retained = report.usage().retained.expect("memory is counted");
        self.0.lock().expect("not poisoned").push(retained);
    }
}

/// Runs a job that leaks nothing, then one that leaks 100 bytes each time.
macro_rules! retains_nothing {
    ($pool:expr) => {{
        let pool = $pool;
        let retained = Retained::default();
        let told = Arc::new(Mutex::new(Vec::<Climb>::new()));
        let keep = Arc::clone(&told);
        let growth = Growth::new();
        let growth = growth.with_listener(move |climb| keep.lock().expect("not poisoned").push(climb.clone()));
        let job = async || {
            let mut transaction = pool.begin().await.expect("begins");
            sqlx::query("SELECT 1").fetch_one(&mut *transaction).await.expect("fetches");
            transaction.commit().await.expect("commits");
            sqlx::query("SELECT 2").fetch_all(&pool).await.expect("fetches");
        };
        for _ in 0..10_000 {
            let work = job().budgeted("job", Budget::new());
            let work = work.with_reporter((growth.clone(), retained.clone()));
            work.await.expect("is not cut");
        }
        let all = std::mem::take(&mut *retained.0.lock().expect("not poisoned"));
        // Every few hundred runs the driver replaces the buffer that it reads into, by one that it keeps.
        let later: Vec<_> = all[1..].iter().filter(|bytes| **bytes > 0).collect();
        assert!(later.len() < 100, "{later:?} of 9,999 runs");
        assert_eq!(*told.lock().expect("not poisoned"), []);

        let keep = Arc::clone(&told);
        let growth = Growth::new().bytes(128 << 10);
        let growth = growth.with_listener(move |climb| keep.lock().expect("not poisoned").push(climb.clone()));
        let mut kept = Vec::with_capacity(2_000);
        for _ in 0..2_000 {
            let work = async {
                job().await;
                kept.push(std::hint::black_box(Vec::<u8>::with_capacity(100)));
            };
            let work = work.budgeted("leak", Budget::new()).with_reporter(growth.clone());
            work.await.expect("is not cut");
        }
        assert!(!told.lock().expect("not poisoned").is_empty(), "the leak is told of");
    }};
}

async fn postgres(url: &str) {
    let plain = PgPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    retains_nothing!(Pool::from(plain));
}

async fn mariadb(url: &str) {
    let plain = MySqlPoolOptions::new().max_connections(1).connect(url).await.expect("connects");
    retains_nothing!(Pool::from(plain));
}
