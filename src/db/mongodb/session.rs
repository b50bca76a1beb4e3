//! A session whose transaction does not stay open on the server when the work is cut.

use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mongodb::bson::doc;
use mongodb::error::Result;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::start::StartTransaction;
use crate::escape::escaped;
use crate::report::fields::HEALTH;

/// A session whose transaction is rolled back when the work is cut; otherwise the driver's, to
/// which it derefs.
///
/// Made by [`Client::start_session`](super::Client::start_session), or [from](Self::from) one of
/// the driver: those that a `Collection` or a `Database` gives by its `client()` are.
///
/// # Cancellation
///
/// The driver rolls a transaction back whose session is dropped, but only one of which it knows
/// that it is in progress. It does not if a commit was begun, even if the command was never sent:
/// because all connections were out, or because the work was cut during the last command before.
/// Nor if the first command was dropped midway. Such a transaction keeps its locks until the
/// session is used again, or by default for [60 seconds].
///
/// So when this session is dropped with a transaction that it has begun, and not seen to be
/// committed or rolled back, the server is told to end what is left: by the driver's
/// `abortTransaction`, where that is sent, and by one `killSessions`, in a task of its own, so soon
/// but not at once. That needs no privilege, for one's own sessions. Both are commands in no unit
/// of work, like those that the driver sends by itself.
///
/// * It goes by [`start_transaction`](Self::start_transaction),
///   [`commit_transaction`](Self::commit_transaction) and
///   [`abort_transaction`](Self::abort_transaction) of this type. A transaction that was begun
///   through a `&mut mongodb::ClientSession` is not seen; one that was only committed there costs a
///   `killSessions` for nothing.
/// * The server cannot be told so where it is asked to be strict about its stable API
///   (`ServerApi`).
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
/// // Wherever it is cut: all of it is committed, or nothing, and nothing stays locked.
/// assert!(result.is_err() || posts.find_one(doc! { "_id": 7 }).await?.is_some());
/// # Ok(()) }
/// ```
pub struct ClientSession {
    /// Taken when it is dropped or taken out.
    inner: Option<mongodb::ClientSession>,
    /// A transaction was begun, and its end has not succeeded.
    is_open: bool,
    /// So it was with one before that.
    was_left_open: bool,
    /// Where the server is told: that in which it is dropped may end sooner, or there is none.
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
        self.deref_mut().commit_transaction().await?;
        self.mark_over();
        Ok(())
    }

    /// Rolls the transaction back, as the driver does, which takes it for done also if the command
    /// fails.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub async fn abort_transaction(&mut self) -> Result<()> {
        self.deref_mut().abort_transaction().await?;
        self.mark_over();
        Ok(())
    }

    /// Notes that a transaction is about to be begun.
    pub(super) fn begins(&mut self) {
        self.was_left_open |= self.is_open;
        self.is_open = true;
    }

    /// Notes that the last transaction has ended.
    pub(super) fn mark_over(&mut self) {
        self.is_open = false;
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
        let runtime = Handle::try_current().ok();
        Self { inner: Some(inner), is_open: false, was_left_open: false, runtime }
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
        if (self.is_open || self.was_left_open)
            && let Some(runtime) = self.runtime.take().or_else(|| Handle::try_current().ok())
            && let Some(session) = self.inner.take()
        {
            drop(runtime.spawn(end(session)));
        }
    }
}

/// After this time the server ends a transaction by itself, by default.
const TIME_TO_END: Duration = Duration::from_secs(60);

/// Ends what a session has left on the server.
///
/// The session goes along: once it is dropped the driver gives its id to another.
async fn end(mut session: mongodb::ClientSession) {
    let killed = timeout(TIME_TO_END, async {
        // The driver ends a transaction that is in progress as usual, but sends nothing for others.
        drop(session.abort_transaction().await);
        // Sends nothing, but lets go of the connection that the last transaction has for itself
        // behind a load balancer: else this would wait for another with that one in its hands.
        drop(session.start_transaction().await);
        let kill = doc! { "killSessions": [session.id()] };
        let admin = session.client().database("admin");
        match admin.run_command(kill.clone()).await {
            Ok(_) => Ok(()),
            // The driver does not send this one again by itself.
            Err(_) => admin.run_command(kill).await.map(drop),
        }
    });
    match killed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say_that_it_may_stay_open(&error),
        Err(elapsed) => say_that_it_may_stay_open(&elapsed),
    }
}

#[cold]
fn say_that_it_may_stay_open(error: &(dyn Error + 'static)) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        tracing::warn!(
            target: HEALTH,
            error = &*escaped(&error.to_string()),
            "a MongoDB transaction that was given up could not be ended: it keeps its locks until \
             the server does that by itself",
        );
    }
}

impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientSession").field(&**self).finish()
    }
}
