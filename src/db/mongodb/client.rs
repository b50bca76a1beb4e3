//! The instrumented client, and the options that make one.

use std::fmt;
use std::ops::Deref;

use mongodb::error::Result;
use mongodb::event::EventHandler;
use mongodb::options::ClientOptions;

use super::events::{ClientId, Commands, Connections};
use super::start::StartSession;
#[cfg(feature = "http")]
use crate::deadline::expect_commands;
use crate::report::unmeasured::{commands_are_only_counted, statements_are_metered};

/// How much is known of each command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Detail {
    /// How many there were and how long they took.
    #[default]
    Counts,
    /// Also which: names, collections and shapes, never values, and how many documents came back.
    ///
    /// # Performance
    ///
    /// The driver converts each reply for this: a `find` of 1,000 documents becomes several times
    /// slower, and the conversion is charged to the memory of the work. For tests.
    Commands,
}

/// A MongoDB client whose commands are counted; otherwise the driver's, to which it derefs.
///
/// A handle, cheap to clone. See the [module docs](super).
#[derive(Clone)]
pub struct Client {
    inner: mongodb::Client,
}

impl Client {
    /// Connects to the deployment that this connection string names.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver, as of a connection string that it cannot parse.
    pub async fn with_uri_str(uri: impl AsRef<str>) -> Result<Self> {
        Self::with_options(ClientOptions::parse(uri.as_ref()).await?)
    }

    /// Makes a client with these options; handlers that are in them are called as well.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub fn with_options(options: ClientOptions) -> Result<Self> {
        Self::with_detail(options, Detail::default())
    }

    /// Makes a client that knows as much of each command.
    ///
    /// # Errors
    ///
    /// Returns the error of the driver.
    pub fn with_detail(mut options: ClientOptions, detail: Detail) -> Result<Self> {
        instrument(&mut options, detail);
        Ok(Self { inner: mongodb::Client::with_options(options)? })
    }

    /// Starts a session whose transaction is rolled back when the work is cut; otherwise as the
    /// driver does.
    pub fn start_session(&self) -> StartSession<'_> {
        StartSession::new(&self.inner)
    }

    /// The driver's client; what passes through it is counted all the same.
    #[must_use]
    pub fn get_ref(&self) -> &mongodb::Client {
        &self.inner
    }

    /// Takes the driver's client out; what passes through it is counted all the same.
    #[must_use]
    pub fn into_inner(self) -> mongodb::Client {
        self.inner
    }
}

impl Deref for Client {
    type Target = mongodb::Client;

    fn deref(&self) -> &mongodb::Client {
        &self.inner
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.inner).finish()
    }
}

/// Adds the counting to options from which the driver's own client will be made.
///
/// Handlers that are in the options already are kept and called after ours. Do this once: options
/// that are instrumented twice count twice.
///
/// # Examples
///
/// ```
/// # #[tokio::main] async fn main() -> mongodb::error::Result<()> {
/// use mongodb::options::ClientOptions;
/// use request_budget::mongodb::{Detail, instrument};
///
/// let mut options = ClientOptions::parse("mongodb://127.0.0.1").await?;
/// instrument(&mut options, Detail::Counts);
/// assert!(options.cmap_event_handler.is_some());
/// let client = mongodb::Client::with_options(options)?;
/// # drop(client); Ok(()) }
/// ```
pub fn instrument(options: &mut ClientOptions, detail: Detail) {
    statements_are_metered();
    #[cfg(feature = "http")]
    expect_commands();
    let client = ClientId::next();
    let connections = Connections::new(client);
    observe(&mut options.cmap_event_handler, move |event| connections.handle(event));
    if detail == Detail::Counts {
        commands_are_only_counted();
    }
    if detail == Detail::Commands {
        let commands = Commands::new(client);
        observe(&mut options.command_event_handler, move |event| commands.handle(event));
    }
}

/// Processes each event, then passes it to the handler that was configured before.
///
/// A callback and not a channel, because only callbacks run in the task of the caller, inside its
/// scope.
fn observe<T: Send + Sync + 'static>(
    handler: &mut Option<EventHandler<T>>,
    look: impl Fn(&T) + Send + Sync + 'static,
) {
    let before = handler.take();
    *handler = Some(EventHandler::callback(move |event| {
        look(&event);
        match &before {
            Some(EventHandler::Callback(callback)) => callback(event),
            Some(EventHandler::AsyncCallback(callback)) => {
                drop(tokio::spawn(callback(event)));
            }
            Some(EventHandler::TokioMpsc(sender)) => {
                let sender = sender.clone();
                drop(tokio::spawn(async move { drop(sender.send(event).await) }));
            }
            // A kind that a later version of the driver may bring cannot be called from here.
            Some(_) | None => {}
        }
    }));
}
