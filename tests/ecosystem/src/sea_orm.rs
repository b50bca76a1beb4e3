//! SeaORM on SQLite: random programs whose statements events report, and a callback as well or not.

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use request_budget::BudgetExt;
use request_budget::db::executed;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, Insert, PaginatorTrait,
    QueryFilter, QueryOrder, Set, SqlxSqliteConnector, StreamTrait, TransactionTrait,
};
use sqlx::SqlitePool;

use crate::check::{fifty, usage_of};
use crate::sqlite::{self, programs};
use crate::steps::End;
use crate::suite::{Suite, runtime, with_runtime};

pub(crate) fn tests(suite: &mut Suite) {
    suite.without_server(&[
        ("sea_orm_1_is_what_sqlite_runs_on_one_thread", || on_sqlite(0)),
        ("sea_orm_1_is_what_sqlite_runs_on_two_threads", || on_sqlite(2)),
        ("sea_orm_1_is_told_apart_among_fifty_requests", fifty_at_once),
    ]);
}

mod item {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "budget_items")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub hits: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// One use of a connection.
#[derive(Debug, Clone, Copy)]
enum Use {
    FindOne,
    FindAll,
    Stream(Option<usize>),
    Count,
    Insert,
    Fails,
    Update,
    Delete,
    Unprepared,
}

#[derive(Debug, Clone)]
enum Step {
    One(Use),
    Transaction(Vec<Use>, End),
    Joined(usize),
    Carried(Use),
}

fn programs() -> impl Strategy<Value = Vec<Step>> {
    let one = || {
        prop_oneof![
            Just(Use::FindOne),
            Just(Use::FindAll),
            prop::option::of(1..8_usize).prop_map(Use::Stream),
            Just(Use::Count),
            Just(Use::Insert),
            Just(Use::Fails),
            Just(Use::Update),
            Just(Use::Delete),
            Just(Use::Unprepared),
        ]
    };
    let end = prop_oneof![Just(End::Commit), Just(End::Rollback), Just(End::Drop)];
    let step = prop_oneof![
        4 => one().prop_map(Step::One),
        3 => (prop::collection::vec(one(), 0..4), end)
            .prop_map(|(uses, end)| Step::Transaction(uses, end)),
        1 => (2..4_usize).prop_map(Step::Joined),
        1 => one().prop_map(Step::Carried),
    ];
    prop::collection::vec(step, 1..8)
}

/// What the program itself knows of what it did.
#[derive(Debug, Default)]
struct Done {
    rows: u64,
    /// Statements that SQLite does not keep prepared.
    unseen: u64,
    drops_a_stream: bool,
}

fn insert(id: i32) -> Insert<item::ActiveModel> {
    item::Entity::insert(item::ActiveModel { id: Set(id), hits: Set(0) })
}

async fn run_use(what: Use, db: &(impl ConnectionTrait + StreamTrait), done: &mut Done) {
    match what {
        Use::FindOne => {
            let one = item::Entity::find_by_id(1).one(db).await.expect("fetches");
            assert_eq!(one.map(|one| one.id), Some(1));
            done.rows += 1;
        }
        Use::FindAll => {
            done.rows += item::Entity::find().all(db).await.expect("fetches").len() as u64;
        }
        Use::Stream(take) => {
            let mut left = take.unwrap_or(usize::MAX);
            let all = item::Entity::find().order_by_asc(item::Column::Id);
            let mut all = all.stream(db).await.expect("begins");
            while left > 0 && all.try_next().await.expect("fetches").is_some() {
                done.rows += 1;
                left -= 1;
            }
            done.drops_a_stream |= take.is_some();
        }
        Use::Count => {
            item::Entity::find().count(db).await.expect("fetches");
            done.rows += 1;
        }
        Use::Insert => {
            let mut conflict = OnConflict::column(item::Column::Id);
            conflict.update_column(item::Column::Hits);
            let insert = insert(21).on_conflict(conflict);
            insert.exec_without_returning(db).await.expect("inserts");
        }
        Use::Fails => {
            insert(1).exec_without_returning(db).await.expect_err("the key is there");
        }
        Use::Update => {
            let hits = Expr::col(item::Column::Hits).add(1);
            let update = item::Entity::update_many().col_expr(item::Column::Hits, hits);
            update.exec(db).await.expect("updates");
        }
        Use::Delete => {
            let delete = item::Entity::delete_many().filter(item::Column::Id.gt(20));
            delete.exec(db).await.expect("deletes");
        }
        Use::Unprepared => {
            db.execute_unprepared("UPDATE budget_items SET hits = 1").await.expect("updates");
            done.unseen += 1;
        }
    }
}

async fn run_program(
    program: &[Step],
    db: &DatabaseConnection,
    pool: &SqlitePool,
    done: &mut Done,
) {
    for step in program {
        match step {
            Step::One(what) => run_use(*what, db, done).await,
            Step::Transaction(uses, end) => {
                let transaction = db.begin().await.expect("begins");
                for what in uses {
                    run_use(*what, &transaction, done).await;
                }
                match end {
                    End::Commit => transaction.commit().await.expect("commits"),
                    End::Rollback => transaction.rollback().await.expect("rolls back"),
                    End::Drop => drop(transaction),
                }
            }
            Step::Joined(count) => {
                let ones = (0..*count).map(|_| item::Entity::find_by_id(1).one(db));
                for one in join_all(ones).await {
                    one.expect("fetches").expect("is there");
                    done.rows += 1;
                }
            }
            Step::Carried(what) => {
                let (what, db) = (*what, db.clone());
                let child = async move {
                    let mut done = Done::default();
                    run_use(what, &db, &mut done).await;
                    done
                };
                let child = tokio::spawn(child.in_current_budget()).await.expect("no panic");
                done.rows += child.rows;
                done.unseen += child.unseen;
                done.drops_a_stream |= child.drops_a_stream;
            }
        }
    }
    programs::settle(pool).await;
}

fn connection(pool: &SqlitePool, has_callback: bool) -> DatabaseConnection {
    let mut db = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.clone());
    if has_callback {
        db.set_metric_callback(|info| executed(&info.statement.sql, info.elapsed, 0));
    }
    db
}

fn on_sqlite(workers: usize) {
    let runtime = runtime(workers);
    let pool = runtime.block_on(sqlite::pool());
    let connections = [false, true].map(|has_callback| connection(&pool, has_callback));
    let equal = async |program: &[Step], db| {
        let before = sqlite::executed(&pool).await;
        let mut done = Done::default();
        let usage = usage_of(run_program(program, db, &pool, &mut done)).await;
        let seen = sqlite::executed(&pool).await - before;
        prop_assert_eq!(usage.queries, seen + done.unseen, "{:?}", usage);
        prop_assert_eq!((usage.observed, usage.unmetered), (usage.queries, 0));
        if done.drops_a_stream {
            prop_assert!(usage.rows >= done.rows, "{:?}", usage);
        } else {
            prop_assert_eq!(usage.rows, done.rows, "{:?}", usage);
        }
        Ok::<_, TestCaseError>(())
    };
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let result =
        TestRunner::new(config).run(&(programs(), any::<bool>()), |(program, callback)| {
            runtime.block_on(equal(&program, &connections[usize::from(callback)]))
        });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn fifty_at_once() {
    with_runtime(2, async {
        let pool = sqlite::pool().await;
        let db = connection(&pool, true);
        let before = sqlite::executed(&pool).await;
        let all = fifty(|| {
            let (pool, db) = (pool.clone(), db.clone());
            async move {
                let all = item::Entity::find().all(&db).await.expect("fetches").len();
                programs::settle(&pool).await;
                all
            }
        });
        assert_eq!(all.await, sqlite::executed(&pool).await - before);
    });
}
