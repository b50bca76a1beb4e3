//! A session whose transaction does not stay open on the server when the work is cut.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;

use mongodb::action;
use mongodb::bson::doc;
use mongodb::error::Result;
use mongodb::options::{SessionOptions, TransactionOptions};
use tokio::runtime::Handle;

use crate::scope;

/// A session whose transaction is rolled back when the work is cut; otherwise the driver's, to which it
/// derefs.
///
/// Made by [`Client::start_session`](super::Client::start_session), or [from](Self::from) one of the driver.
///
/// # Cancellation
///
/// A session of the driver that is dropped has its transaction rolled back, but not once a commit was begun:
/// also if the command was never sent, as with an exhausted pool, or in work that is cut during the last
/// command before the commit. The transaction then stays open, with its locks, until the session is used
/// again or the server's limit of [60 seconds] is over.
///
/// So when this session is dropped by a cut, or after a commit that nothing came of, the server is told to end
/// what it left: one `killSessions`, in a task of its own, which is nobody's query.
///
/// [60 seconds]: https://www.mongodb.com/docs/manual/core/transactions-production-consideration/
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main] async fn main() -> mongodb::error::Result<()> {
/// use mongodb::bson::{Document, doc};
/// use request_budget::mongodb::Client;
///
/// let client = Client::with_uri_str("mongodb://127.0.0.1/?replicaSet=rs0").await?;
/// let posts = client.database("blog").collection::<Document>("posts");
/// let mut session = client.start_session().await?;
/// session.start_transaction().await?;
/// posts.insert_one(doc! { "_id": 7 }).session(&mut session).await?;
/// assert!(posts.find_one(doc! { "_id": 7 }).await?.is_none());
/// session.commit_transaction().await?;
/// assert!(posts.find_one(doc! { "_id": 7 }).await?.is_some());
/// # Ok(()) }
/// ```
pub struct ClientSession {
    /// Taken when it is dropped.
    inner: Option<mongodb::ClientSession>,
    /// A commit or an abort was begun and has not succeeded: the driver leaves such a transaction alone.
    is_unsettled: bool,
}

impl ClientSession {
    /// Commits the transaction, as the driver does.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn commit_transaction(&mut self) -> Result<()> {
        self.is_unsettled = true;
        self.deref_mut().commit_transaction().await?;
        self.is_unsettled = false;
        Ok(())
    }

    /// Rolls the transaction back, as the driver does.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn abort_transaction(&mut self) -> Result<()> {
        self.is_unsettled = true;
        self.deref_mut().abort_transaction().await?;
        self.is_unsettled = false;
        Ok(())
    }
}

impl From<mongodb::ClientSession> for ClientSession {
    fn from(inner: mongodb::ClientSession) -> Self {
        Self { inner: Some(inner), is_unsettled: false }
    }
}

/// For the driver's `session(..)`, which takes whatever becomes a session of its own.
impl<'a> From<&'a mut ClientSession> for &'a mut mongodb::ClientSession {
    fn from(session: &'a mut ClientSession) -> Self {
        session
    }
}

impl Deref for ClientSession {
    type Target = mongodb::ClientSession;

    fn deref(&self) -> &mongodb::ClientSession {
        self.inner.as_ref().expect(IS_THERE)
    }
}

impl DerefMut for ClientSession {
    fn deref_mut(&mut self) -> &mut mongodb::ClientSession {
        self.inner.as_mut().expect(IS_THERE)
    }
}

const IS_THERE: &str = "a session is there until it is dropped";

impl Drop for ClientSession {
    fn drop(&mut self) {
        let is_cut = || scope::current().is_some_and(|meter| meter.is_abandoned());
        if (self.is_unsettled || is_cut())
            && let Some(session) = self.inner.take()
            && let Ok(runtime) = Handle::try_current()
        {
            // The session goes along: once it is dropped the driver gives its id to another.
            drop(runtime.spawn(async move {
                let admin = session.client().database("admin");
                drop(admin.run_command(doc! { "killSessions": [session.id()] }).await);
            }));
        }
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientSession").field(&**self).finish()
    }
}

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

    /// With what a transaction of this session starts unless it is told otherwise.
    pub fn default_transaction_options(self, options: TransactionOptions) -> Self {
        Self { inner: self.inner.default_transaction_options(options) }
    }

    /// Whether all that is read in this session is of one moment.
    pub fn snapshot(self, is_on: bool) -> Self {
        Self { inner: self.inner.snapshot(is_on) }
    }
}

impl fmt::Debug for StartSession<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartSession").finish_non_exhaustive()
    }
}

impl<'a> IntoFuture for StartSession<'a> {
    type Output = Result<ClientSession>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.inner.await.map(ClientSession::from) })
    }
}
