//! The statements of a program, and the ways to execute them.

use futures_util::StreamExt;
use proptest::collection::vec;
use proptest::prelude::*;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArgumentsBuffer, SqliteTypeInfo};
use sqlx::{AssertSqlSafe, Either, Encode, Execute, Executor, SqlSafeStr, SqlStr, Sqlite, Type};

use crate::account::Tally;
use crate::{NUMBERS, is_refusal};

/// A statement, and the way to execute it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    sql: Sql,
    how: How,
    persistent: bool,
}

/// A method of the executor; of those with a number, how many results are taken from the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum How {
    Execute,
    ExecuteMany(usize),
    FetchOne,
    FetchOptional,
    FetchAll,
    Fetch(usize),
    FetchMany(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum Sql {
    /// One of several texts, and how many rows it is to return.
    Rows(usize, usize),
    Insert,
    Returning,
    Update,
    Comment,
    SyntaxError,
    Constraint,
    /// Fails once it has returned so many rows.
    FailsAfter(usize),
    /// A text that knows nothing of arguments.
    Plain,
    Batch(Vec<Piece>),
}

/// A statement of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece {
    Rows(usize),
    Update,
    SyntaxError,
    Constraint,
}

const ROWS: [&str; 3] = [
    "SELECT i FROM numbers WHERE i <= $1",
    "SELECT i, i * i FROM numbers WHERE i <= $1",
    "SELECT  'odd  white   space',\n\ti FROM numbers WHERE i <= $1\n",
];

impl Sql {
    pub(crate) fn text(&self) -> SqlStr {
        match self {
            Self::Rows(which, _) => ROWS[*which].into_sql_str(),
            Self::Insert => "INSERT INTO items (name) VALUES ($1)".into_sql_str(),
            Self::Returning => {
                "INSERT INTO items (name) VALUES ($1) RETURNING id, name".into_sql_str()
            }
            Self::Update => "UPDATE items SET name = $1 WHERE id = 1".into_sql_str(),
            Self::Comment => "-- no statement at all".into_sql_str(),
            Self::SyntaxError => "SELEC i FROM numbers WHERE i <= $1".into_sql_str(),
            Self::Constraint => "INSERT INTO items (id, name) VALUES (1, $1)".into_sql_str(),
            Self::FailsAfter(_) => "SELECT abs(iif(i > $1, -9223372036854775807 - 1, i)) \
                                    FROM numbers"
                .into_sql_str(),
            Self::Plain => "SELECT i FROM numbers".into_sql_str(),
            Self::Batch(pieces) => {
                let texts: Vec<_> = pieces.iter().map(|piece| piece.text()).collect();
                AssertSqlSafe(texts.join("; ")).into_sql_str()
            }
        }
    }

    pub(crate) fn argument(&self) -> i64 {
        match self {
            Self::Rows(_, rows) | Self::FailsAfter(rows) => *rows as i64,
            _ => 7,
        }
    }

    fn pieces(&self) -> &[Piece] {
        if let Self::Batch(pieces) = self { pieces } else { &[] }
    }
}

impl Piece {
    fn text(self) -> String {
        match self {
            Self::Rows(rows) => format!("SELECT i FROM numbers WHERE i <= {rows}"),
            Self::Update => "UPDATE items SET name = 'piece' WHERE id = 1".to_owned(),
            Self::SyntaxError => "SELEC 1".to_owned(),
            Self::Constraint => "INSERT INTO items (id, name) VALUES (1, 'twice')".to_owned(),
        }
    }

    fn rows(self) -> usize {
        if let Self::Rows(rows) = self { rows } else { 0 }
    }

    fn fails(self) -> bool {
        matches!(self, Self::SyntaxError | Self::Constraint)
    }
}

impl Call {
    pub(crate) async fn run<'c>(&self, on: impl Executor<'c, Database = Sqlite>, tally: &Tally) {
        let text = self.sql.text();
        let error = match &self.sql {
            Sql::Plain => self.how.drive(on, text, tally).await,
            Sql::Batch(_) => self.how.drive(on, sqlx::raw_sql(text), tally).await,
            _ => {
                let query = sqlx::query(text).bind(self.sql.argument());
                self.how.drive(on, query.persistent(self.persistent), tally).await
            }
        };
        match error {
            Some(error) if is_refusal(&error) => tally.refuse(),
            _ => tally.more_of_batch(self.more_of_batch()),
        }
    }

    /// How many rows may have been read if this is dropped before it is done.
    pub(crate) fn rows_unseen(&self) -> u64 {
        if matches!(self.how, How::FetchAll) { NUMBERS as u64 } else { 0 }
    }

    /// Makes the future or the stream, and does not poll it.
    pub(crate) fn make_and_drop<'c>(&self, on: impl Executor<'c, Database = Sqlite>) {
        let query = sqlx::query(self.sql.text()).bind(self.sql.argument());
        match self.how {
            How::Execute => drop(on.execute(query)),
            How::ExecuteMany(_) => drop(on.execute_many(query)),
            How::FetchOne => drop(on.fetch_one(query)),
            How::FetchOptional => drop(on.fetch_optional(query)),
            How::FetchAll => drop(on.fetch_all(query)),
            How::Fetch(_) => drop(on.fetch(query)),
            How::FetchMany(_) => drop(on.fetch_many(query)),
        }
    }

    /// How many statements of a batch count besides the first: those of which a result arrived.
    ///
    /// To sqlx a batch is one text, and so one event.
    fn more_of_batch(&self) -> u64 {
        let pieces = self.sql.pieces();
        let failing = pieces.iter().position(|piece| piece.fails());
        let last = failing.unwrap_or(pieces.len().saturating_sub(1));
        // The piece with so many results, of those that are taken, in it and before it.
        let within = |taken: usize, results: fn(Piece) -> usize| {
            let mut sum = 0;
            let enough = |piece: &Piece| {
                sum += results(*piece);
                taken <= sum
            };
            pieces.iter().position(enough).unwrap_or(last).min(last)
        };
        let more = match self.how {
            How::Execute | How::FetchAll => last,
            // The driver reports nothing but the row or the error.
            How::FetchOne | How::FetchOptional => 0,
            How::ExecuteMany(taken) => within(taken, |_| 1),
            How::Fetch(taken) => within(taken, Piece::rows),
            // Each piece ends with a result that says that it is done, or has failed.
            How::FetchMany(taken) => within(taken, |piece| piece.rows() + 1),
        };
        more as u64
    }
}

impl How {
    /// Executes a statement in this way, notes the rows that the caller gets, and gives the error.
    pub(crate) async fn drive<'c, 'q, Q>(
        self,
        on: impl Executor<'c, Database = Sqlite>,
        query: Q,
        tally: &Tally,
    ) -> Option<sqlx::Error>
    where
        Q: Execute<'q, Sqlite> + 'q,
    {
        match self {
            Self::Execute => on.execute(query).await.err(),
            Self::ExecuteMany(taken) => {
                let mut results = on.execute_many(query).take(taken);
                while let Some(result) = results.next().await {
                    if let Err(error) = result {
                        return Some(error);
                    }
                }
                None
            }
            Self::FetchOne => on.fetch_one(query).await.map(|_| tally.rows(1)).err(),
            Self::FetchOptional => {
                let row = on.fetch_optional(query).await;
                row.map(|row| tally.rows(row.map_or(0, |_| 1))).err()
            }
            Self::FetchAll => {
                let rows = on.fetch_all(query).await;
                rows.map(|rows| tally.rows(rows.len() as u64)).err()
            }
            Self::Fetch(taken) => {
                let mut rows = on.fetch(query).take(taken);
                while let Some(row) = rows.next().await {
                    match row {
                        Ok(_) => tally.rows(1),
                        Err(error) => return Some(error),
                    }
                }
                None
            }
            Self::FetchMany(taken) => {
                let mut results = on.fetch_many(query).take(taken);
                while let Some(result) = results.next().await {
                    match result {
                        Ok(Either::Left(_)) => {}
                        Ok(Either::Right(_)) => tally.rows(1),
                        Err(error) => return Some(error),
                    }
                }
                None
            }
        }
    }
}

/// An argument that no statement can be given.
pub(crate) struct Unencodable;

impl Type<Sqlite> for Unencodable {
    fn type_info() -> SqliteTypeInfo {
        <i64 as Type<Sqlite>>::type_info()
    }
}

impl Encode<'_, Sqlite> for Unencodable {
    fn encode_by_ref(&self, _: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        Err("cannot be encoded".into())
    }
}

pub(crate) fn call(sql: impl Strategy<Value = Sql> + Clone) -> impl Strategy<Value = Call> + Clone {
    (sql, how(), any::<bool>()).prop_map(|(sql, how, persistent)| Call { sql, how, persistent })
}

pub(crate) fn how() -> impl Strategy<Value = How> + Clone {
    prop_oneof![
        Just(How::Execute),
        taken().prop_map(How::ExecuteMany),
        Just(How::FetchOne),
        Just(How::FetchOptional),
        Just(How::FetchAll),
        taken().prop_map(How::Fetch),
        taken().prop_map(How::FetchMany),
    ]
}

/// Some of the results, or all.
fn taken() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![2 => 0..6_usize, 1 => 6..NUMBERS, 1 => Just(usize::MAX)]
}

fn rows() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![3 => 0..5_usize, 1 => 5..=NUMBERS]
}

pub(crate) fn sql() -> impl Strategy<Value = Sql> + Clone {
    prop_oneof![
        6 => (0..ROWS.len(), rows()).prop_map(|(which, rows)| Sql::Rows(which, rows)),
        1 => Just(Sql::Insert),
        1 => Just(Sql::Returning),
        1 => Just(Sql::Update),
        1 => Just(Sql::Comment),
        1 => Just(Sql::SyntaxError),
        1 => Just(Sql::Constraint),
        1 => (0..NUMBERS).prop_map(Sql::FailsAfter),
        1 => Just(Sql::Plain),
    ]
}

pub(crate) fn any_sql() -> impl Strategy<Value = Sql> + Clone {
    let piece = prop_oneof![
        4 => (0..5_usize).prop_map(Piece::Rows),
        2 => Just(Piece::Update),
        1 => Just(Piece::SyntaxError),
        1 => Just(Piece::Constraint),
    ];
    prop_oneof![
        5 => sql(),
        1 => vec(piece, 0..5).prop_map(Sql::Batch),
    ]
}
