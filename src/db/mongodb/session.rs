//! A session whose transaction does not stay open on the server when the work is cut.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mongodb::bson::doc;
use mongodb::error::Result;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::start::StartTransaction;
use crate::report::fields::HEALTH;

/// A session whose transaction is rolled back when the work is cut; otherwise the driver's, to which it
/// derefs.
///
/// Made by [`Client::start_session`](super::Client::start_session), or [from](Self::from) one of the driver:
/// those that a `Collection` or a `Database` gives by its `client()` are.
///
/// # Cancellation
///
/// The driver rolls a transaction back whose session is dropped, but not once a commit was begun. It takes it
/// for begun even if the command was never sent: because all connections were out, or because the work was
/// cut during the last command before. Such a transaction keeps its locks until the session is used again,
/// or for the server's limit of [60 seconds].
///
/// So when this session is dropped after a commit that has not succeeded, the server is told to end what is
/// left (`killSessions`, in a task of its own). That needs no privilege, for one's own sessions. It is a
/// command in no unit of work, like those that the driver sends by itself.
///
/// * The server cannot be told so where it is asked to be strict about its stable API (`ServerApi`).
/// * A program that ends at once has to wait for it: [`mongodb::Client::shutdown`] does.
///
/// [60 seconds]: https://www.mongodb.com/docs/manual/core/transactions-production-consideration/
///
/// # Examples
///
/// ```no_run
/// # #[tokio::main] async fn main() -> mongodb::error::Result<()> {
/// use std::time::Duration;
/// use mongodb::bson::{Document, doc};
/// use request_budget::{Budget, BudgetExt, mongodb::Client};
///
/// let client = Client::with_uri_str("mongodb://127.0.0.1/?replicaSet=rs0").await?;
/// let posts = client.database("blog").collection::<Document>("posts");
/// let work = async {
///     let mut session = client.start_session().await?;
///     session.start_transaction().await?;
///     posts.insert_one(doc! { "_id": 7 }).session(&mut session).await?;
///     session.commit_transaction().await
/// };
/// let result = work.budgeted("insert", Budget::new().total_time(Duration::from_secs(1))).await;
/// // Cut at whatever point: all of it is there, or nothing, and nothing is locked.
/// assert!(result.is_err() || posts.find_one(doc! { "_id": 7 }).await?.is_some());
/// # Ok(()) }
/// ```
pub struct ClientSession {
    /// Taken when it is dropped or taken out.
    inner: Option<mongodb::ClientSession>,
    /// The end of a transaction was begun and has not succeeded: the driver leaves such a one alone.
    pub(super) is_unsettled: bool,
    /// Where the server is told, should it be dropped outside of all runtimes.
    runtime: Option<Handle>,
}

impl ClientSession {
    /// Starts a transaction, as the driver does.
    pub fn start_transaction(&mut self) -> StartTransaction<'_> {
        StartTransaction::new(self)
    }

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

    /// Takes the driver's session out, which is dropped as the driver does it.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it is there until it is dropped")]
    pub fn into_inner(mut self) -> mongodb::ClientSession {
        self.inner.take().expect(IS_THERE)
    }
}

impl From<mongodb::ClientSession> for ClientSession {
    fn from(inner: mongodb::ClientSession) -> Self {
        Self { inner: Some(inner), is_unsettled: false, runtime: Handle::try_current().ok() }
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
        if self.is_unsettled
            && let Some(runtime) = Handle::try_current().ok().or_else(|| self.runtime.take())
            && let Some(session) = self.inner.take()
        {
            // Not here: a timer cannot be made outside of a runtime.
            drop(runtime.spawn(async { drop(timeout(TIME_TO_END, end(session)).await) }));
        }
    }
}

/// After this long the server has ended the transaction by itself.
const TIME_TO_END: Duration = Duration::from_secs(60);

/// Ends what a session has left on the server.
///
/// The session goes along: once it is dropped the driver gives its id to another.
async fn end(mut session: mongodb::ClientSession) {
    // One that is in progress the driver can end; it refuses others without a word to the server.
    if session.abort_transaction().await.is_ok() {
        return;
    }
    // Sends nothing, but lets go of the connection that the last transaction has for itself behind a load
    // balancer: else this would wait for another with that one in its hands.
    drop(session.start_transaction().await);
    let kill = doc! { "killSessions": [session.id()] };
    let admin = session.client().database("admin");
    if admin.run_command(kill.clone()).await.is_ok() {
        return;
    }
    // The driver does not do this command again by itself.
    if let Err(error) = admin.run_command(kill).await {
        say_that_it_stays_open(&error);
    }
}

#[cold]
fn say_that_it_stays_open(error: &mongodb::error::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: HEALTH,
            %error,
            "a MongoDB transaction whose commit was given up could not be rolled back: it keeps its locks \
             until the server ends it",
        );
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientSession").field(&**self).finish()
    }
}
