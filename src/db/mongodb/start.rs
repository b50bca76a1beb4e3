//! Starting sessions and their transactions: the driver's builders, for this crate's session.

use std::fmt;
use std::ops::DerefMut;
use std::pin::Pin;
use std::time::Duration;

use mongodb::action;
use mongodb::bson::Timestamp;
use mongodb::error::Result;
use mongodb::options::{
    ReadConcern, SelectionCriteria, SessionOptions, TransactionOptions, WriteConcern,
};

use super::session::ClientSession;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts a session, with these options: awaited, it becomes a [`ClientSession`].
#[must_use = "no session is started until this is awaited"]
pub struct StartSession<'a> {
    inner: action::StartSession<'a>,
}

impl<'a> StartSession<'a> {
    pub(super) fn new(client: &'a mongodb::Client) -> Self {
        Self { inner: client.start_session() }
    }

    /// Sets all options at once.
    pub fn with_options(self, options: impl Into<Option<SessionOptions>>) -> Self {
        Self { inner: self.inner.with_options(options) }
    }

    /// Whether what is read in this session sees what was written in it before.
    pub fn causal_consistency(self, is_on: bool) -> Self {
        Self { inner: self.inner.causal_consistency(is_on) }
    }

    /// The default options of the transactions of this session.
    pub fn default_transaction_options(self, options: TransactionOptions) -> Self {
        Self { inner: self.inner.default_transaction_options(options) }
    }

    /// Whether all that is read in this session is of one moment.
    pub fn snapshot(self, is_on: bool) -> Self {
        Self { inner: self.inner.snapshot(is_on) }
    }

    /// Of which moment.
    pub fn snapshot_time(self, time: Timestamp) -> Self {
        Self { inner: self.inner.snapshot_time(time) }
    }
}

impl fmt::Debug for StartSession<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartSession").finish_non_exhaustive()
    }
}

impl<'a> IntoFuture for StartSession<'a> {
    type Output = Result<ClientSession>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.inner.await.map(ClientSession::from) })
    }
}

/// Starts a transaction, with these options: awaited, or run with what it is to do.
#[must_use = "no transaction is started until this is awaited"]
#[derive(Debug)]
pub struct StartTransaction<'a> {
    session: &'a mut ClientSession,
    options: Option<TransactionOptions>,
}

impl<'a> StartTransaction<'a> {
    pub(super) fn new(session: &'a mut ClientSession) -> Self {
        Self { session, options: None }
    }

    /// Sets all options at once.
    pub fn with_options(self, options: impl Into<Option<TransactionOptions>>) -> Self {
        Self { options: options.into(), ..self }
    }

    /// What its reads see.
    pub fn read_concern(mut self, concern: ReadConcern) -> Self {
        self.options.get_or_insert_default().read_concern = Some(concern);
        self
    }

    /// When its commit is acknowledged.
    pub fn write_concern(mut self, concern: WriteConcern) -> Self {
        self.options.get_or_insert_default().write_concern = Some(concern);
        self
    }

    /// Which server it runs on.
    pub fn selection_criteria(mut self, criteria: SelectionCriteria) -> Self {
        self.options.get_or_insert_default().selection_criteria = Some(criteria);
        self
    }

    /// How long the server may take for the commit.
    pub fn max_commit_time(mut self, time: Duration) -> Self {
        self.options.get_or_insert_default().max_commit_time = Some(time);
        self
    }

    /// The driver's, of which the session knows from now on.
    fn begin(&mut self) -> action::StartTransaction<&mut mongodb::ClientSession> {
        self.session.begins();
        self.session.deref_mut().start_transaction().with_options(self.options.take())
    }

    /// Runs this in a transaction and commits it, or rolls it back; again where that may help, as
    /// the driver does.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver, or that of the callback.
    pub async fn and_run<R, C, F>(mut self, context: C, callback: F) -> Result<R>
    where
        F: for<'b> FnMut(&'b mut mongodb::ClientSession, &'b mut C) -> BoxFuture<'b, Result<R>>,
    {
        let result = self.begin().and_run(context, callback).await?;
        // After an error it is unknown whether it was rolled back.
        self.session.mark_over();
        Ok(result)
    }

    /// As [`and_run`](Self::and_run), with an async closure.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver, or that of the callback.
    pub async fn and_run2<R, F>(mut self, callback: F) -> Result<R>
    where
        F: for<'b> AsyncFnMut(&'b mut mongodb::ClientSession) -> Result<R>,
    {
        let result = self.begin().and_run2(callback).await?;
        self.session.mark_over();
        Ok(result)
    }
}

impl<'a> IntoFuture for StartTransaction<'a> {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move { self.begin().await })
    }
}
