//! A query taken apart and put together again, to see its text and still execute it.

use sqlx::error::BoxDynError;
use sqlx::{Database, Execute, SqlStr};

use crate::db::{Begun, Query};
use crate::error::Cut;
use crate::meter::recording::Kind;
use crate::meter::table::{DatabaseId, Key};

/// All that an [`Execute`] holds, and one itself.
pub(super) struct Request<DB: Database> {
    arguments: Result<Option<DB::Arguments>, BoxDynError>,
    statement: Option<DB::Statement>,
    persistent: bool,
    sql: SqlStr,
}

impl<DB: Database> Request<DB> {
    pub(super) fn new<'q>(mut query: impl Execute<'q, DB>) -> Self {
        // In this order: `sql` consumes the query, and some queries answer `persistent` by what
        // `take_arguments` has left in them.
        let arguments = query.take_arguments();
        let statement = query.statement().cloned();
        let persistent = query.persistent();
        Self { arguments, statement, persistent, sql: query.sql() }
    }

    /// Counts its execution, which is about to begin, or has begun just now.
    ///
    /// There is none, and nothing to count, if its arguments could not be encoded: the driver sends
    /// nothing then and returns the reason.
    pub(super) fn start(
        &self,
        begun: Option<Begun>,
        database: DatabaseId,
    ) -> Result<Option<Query>, Cut> {
        match self.arguments {
            Ok(_) => {
                let begun = begun.unwrap_or_else(Begun::now);
                let sql = self.sql.as_str();
                let key = Key::on(database, sql);
                let query = Query::start_as(Kind::Sql(DB::NAME), key, sql, begun);
                query.map(Some)
            }
            Err(_) => Ok(None),
        }
    }

    pub(super) fn text(&self) -> &str {
        self.sql.as_str()
    }

    /// Whether it may hold several statements: what has arguments, even none, is prepared as one
    /// (by all but SQLite, which runs each and is counted once).
    pub(super) fn may_be_batch(&self) -> bool {
        matches!(self.arguments, Ok(None))
    }
}

impl<DB: Database> Execute<'_, DB> for Request<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        std::mem::replace(&mut self.arguments, Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}
